"""docs/transformer_lens.md names the tests that hold it, and a test that fails names its row."""

import ast
import re
from pathlib import Path

import pytest

from tests.transformer_lens.page import PAGE, Library, rows

HERE, ROOT = Path(__file__).parent, PAGE.parents[1]


def tests_beside():
    """The tests of the page, each with the names of what it is given."""
    trees = [ast.parse(path.read_text()) for path in HERE.glob("test_*.py") if path != Path(__file__)]
    found = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {one.name: [arg.arg for arg in one.args.args] for one in found if one.name.startswith("test_")}


def test_every_row_is_read():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(rows()) == sum(line.startswith("| **") for line in lines)
    assert len({row.title for row in rows()}) == len(rows())


def test_rows_name_their_tests_and_tests_stand_in_rows():
    named = [name for row in rows() for name in row.tests]
    assert all(row.tests for row in rows())
    assert sorted(named) == sorted(tests_beside())
    assert all("library" in given for given in tests_beside().values())


def test_rows_link_what_is_there():
    links = re.findall(r"\]\((?!http)(.+?)\)", PAGE.read_text(encoding="utf-8"))
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
    assert all(re.search(r"\]\(\.\./(locate|edit)/", row.answer) for row in rows())


def test_rows_say_the_versions_that_are_installed():
    """A new version is tried first: ``make test`` says which rows it changes."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    seen = {(name, version) for row in rows() for name, version in row.versions.items() if name in pinned}
    assert seen == {(name, pinned[name]) for name in ("transformer-lens", "transformers")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.title)
def test_what_fails_names_the_row(row):
    for test in row.tests:
        with pytest.raises(AssertionError, match="Mend this row") as caught, Library(test):
            raise AssertionError("it is otherwise")
        assert f"“{row.title}”" in str(caught.value)
        assert all(f"{name} {version}" in str(caught.value) for name, version in row.versions.items())
