"""The command line: ``locate-edit`` and a command, such as ``trace``, ``edit`` or ``propagate``.

Commands import no model library before they run, so that help and mistakes are told at once.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from edit.cli.commands import (
    circuit,
    demo,
    doctor,
    edit,
    evaluate,
    location_report,
    neurons,
    patch,
    propagate,
    stats,
    trace,
)
from edit.cli.kit.output import end_on_request

app = typer.Typer(
    help="Find where a language model keeps a fact, change it, and watch the change travel to the answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("demo")(demo.run)
app.command("trace")(trace.run)
app.command("patch")(patch.run)
app.command("neurons")(neurons.run)
app.command("circuit")(circuit.run)
app.command("edit")(edit.run)
app.command("evaluate")(evaluate.run)
app.command("propagate")(propagate.run)
app.command("location-report")(location_report.run)
app.command("stats")(stats.run)
app.command("doctor")(doctor.run)


def _version(asked: bool) -> bool:
    if asked:
        print(f"locate-edit {version('locate-edit')}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of no command."""


def main() -> None:
    """Entry point of the console script: 0 (done), 1 (failed), 2 (bad usage or input), 130 and 143 (stopped)."""
    end_on_request()
    app()
