"""The command line, run in this process."""

import pytest
from typer.testing import CliRunner

from edit.cli import app


@pytest.fixture
def locate_edit(model_folder):
    """``locate_edit("trace")(*arguments, expect=0)``: a command on the small model, and the code it must end with."""

    def made(name, *usual, model=model_folder):
        def invoke(*arguments, expect=0):
            result = CliRunner().invoke(app, [name, "--model", str(model), *usual, *map(str, arguments)])
            assert result.exit_code == expect, result.output
            assert "Traceback" not in result.output
            return result

        return invoke

    return made


def said(result):
    """What stands on stderr, whatever its lines."""
    return " ".join(result.stderr.split())
