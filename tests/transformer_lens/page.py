"""The rows of docs/transformer_lens.md, and what is said when a library does otherwise than one of them."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transformer_lens.md"
_ROW = re.compile(r"\| \*\*(.+?)\*\* (.+) \| (.+) \| (.+) \| (.+) \|")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A behaviour, the versions that it was seen with, what the toolkit does about it, and the tests that hold it."""

    title: str
    behaviour: str
    versions: dict[str, str]
    answer: str
    tests: list[str]


def rows() -> list[Row]:
    """Every row of the page."""
    found = [_ROW.fullmatch(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [_row(*match.groups()) for match in found if match]


def _row(title: str, behaviour: str, versions: str, answer: str, tests: str) -> Row:
    named = dict(one.split() for one in versions.split(", "))
    held_by = re.findall(r"`(test_\w+)`", tests)
    return Row(title=title, behaviour=behaviour, versions=named, answer=answer, tests=held_by)


def _here(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


class Library:
    """A block that holds what a library does, in the test of this name: ``with library: assert …``."""

    def __init__(self, test: str) -> None:
        self._test = test

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        told = [
            f"“{row.title}”, seen with "
            + ", ".join(f"{name} {tried} (here: {_here(name)})" for name, tried in row.versions.items())
            for row in rows()
            if self._test in row.tests
        ]
        raise AssertionError(
            f"{error}\n\nA library does otherwise than docs/transformer_lens.md says. Mend this row, its versions and "
            f"{self._test}, and see whether the toolkit's answer is still needed: {'; '.join(told) or 'it has none'}."
        ) from error
