"""Records of files, each with the line that it stands on, and what is wrong with them."""

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from locate.errors import DataError, FactError, counted, listed
from locate.facts.subjects import AbsentSubject

T = TypeVar("T")
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Records(Sequence[Any]):
    """What a file holds, unchecked, with the line on which each record begins.

    >>> Records(["a", "b"], lines=[1, 4])[1:].place(0)
    'line 4, record 2'
    """

    values: Sequence[Any]
    lines: Sequence[int]
    first: int = 1

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self.values[index]
        start = index.indices(len(self))[0]
        return Records(self.values[index], self.lines[index], self.first + start)

    def place(self, index: int) -> str:
        """Where a record stands, counted from 1."""
        return f"line {self.lines[index]}, record {index + self.first}"


@dataclass(frozen=True)
class Unreadable:
    """In place of a record: why there is none."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Parsed(Generic[T]):
    """Records one by one.

    Attributes:
        values: of those that are good, by index.
        problems: of those that are bad, one for each, with its place and fields.
        absent: the same of those whose subjects do not occur in their prompts.
    """

    values: dict[int, T] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def parse_each(records: Sequence[Any], parse: Callable[[int, Any], T]) -> Parsed[T]:
    """Every record by ``parse(index, record)``, the bad ones apart.

    >>> parse_each(["7"], lambda _, record: int(record)).values
    {0: 7}
    """
    parsed: Parsed[T] = Parsed()
    for index, record in enumerate(records):
        place = records.place(index) if isinstance(records, Records) else f"record {index + 1}"
        try:
            if isinstance(record, Unreadable):
                raise FactError(record.reason)
            parsed.values[index] = parse(index, record)
        except ValidationError as error:
            parsed.problems.append(f"{place}, {'; '.join(map(field_problem, error.errors()))}")
        except AbsentSubject as error:
            parsed.absent.append(f"{place}, {error}")
        except FactError as error:
            parsed.problems.append(f"{place}, {error}")
    return parsed


def parse_records(path: Path, records: Sequence[Any], parse: Callable[[int, Any], T]) -> list[T]:
    """Every record by ``parse(index, record)``; the bad ones are collected into one error.

    A record whose subject does not occur in its prompt is left out with a warning, which names it likewise.

    Raises:
        DataError: a record is bad: the message names the file, the record's place and the field. Or none fits.

    >>> parse_records(Path("ages.json"), [{"age": "7"}], lambda _, record: int(record["age"]))
    [7]
    """
    parsed = parse_each(records, parse)
    if parsed.problems or len(parsed.absent) == len(records):
        raise wrong(path, [*parsed.problems, *parsed.absent], len(records))
    if parsed.absent:
        warnings.warn(
            f"{path}: left out {len(parsed.absent)} of {len(records)} records, whose subjects do not occur in their "
            f"prompts:\n{listed(parsed.absent, 10)}",
            stacklevel=4,
        )
    return list(parsed.values.values())


def wrong(path: Path, problems: Sequence[str], records: int) -> DataError:
    """The error that says what is wrong with a file's records."""
    found = f"{counted(len(problems), 'problem')} in {counted(records, 'record')}"
    return DataError(f"{path}: {found}:\n{listed(problems, 10)}")


def field_problem(problem: Any) -> str:
    """A field of a record and what is wrong with it, of one of a ``ValidationError``'s errors."""
    field_name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field_name}: {message}" if field_name else message


def read_records(path: Path, what: str = "facts") -> Records:
    """The records of a JSON, JSONL or CSV file, unchecked; ``what`` they are is said in messages.

    Raises:
        DataError: the file is missing, not readable as what its name says, or holds no list of records.

    >>> [record["subject"] for record in read_records(Path("my_facts.json"))]
    ['Rome']
    """
    if not path.is_file():
        raise DataError(f"There is no {what} file {str(path)!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        match path.suffix.lower():
            case ".json":
                found = list(_items(text))
            case ".jsonl":
                found = list(_of_lines(text))
            case ".csv":
                found = list(_rows(text))
            case other:
                raise DataError(f"{path}: unknown file type {other!r}; {what} come as .json, .jsonl or .csv.")
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from error
    except _NoRecords as error:
        raise DataError(f"{path}: expected a non-empty list of {what}, found {error}.") from error
    if not found:
        raise DataError(f"{path}: expected a non-empty list of {what}, found an empty one.")
    return Records([record for record, _ in found], [line for _, line in found])


class _NoRecords(Exception):
    """What a JSON file holds in place of records."""


def _items(text: str) -> Iterator[tuple[Any, int]]:
    """The items of a list, or a single object, each with its line."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        whole = json.loads(text)
        if not isinstance(whole, dict):
            raise _NoRecords(type(whole).__name__)
        yield whole, 1 + text.count("\n", 0, at)
        return
    decoder, line, counted_to = json.JSONDecoder(), 1, 0
    at = _after_space(text, at + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted_to = line + text.count("\n", counted_to, at), at
        record, at = decoder.raw_decode(text, at)
        yield record, line
        at = _after_space(text, at)
        more = text[at : at + 1] == ","
        at = _after_space(text, at + 1) if more else at
    if text[at : at + 1] != "]" or _after_space(text, at + 1) < len(text):
        json.loads(text)  # says what is wrong, and where


def _of_lines(text: str) -> Iterator[tuple[Any, int]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), number
            except json.JSONDecodeError as error:
                yield Unreadable(f"not readable as JSON: {error.msg} at column {error.colno}"), number


def _rows(text: str) -> Iterator[tuple[Any, int]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    rows.fieldnames  # noqa: B018 (reads the first line)
    line = rows.line_num + 1
    for row in rows:
        extra = row.pop(None, None)  # type: ignore[call-overload]
        problem = f"has {counted(len(extra), 'cell')} more than there are columns: {extra}" if extra else None
        yield Unreadable(problem) if problem else {name: value for name, value in row.items() if value}, line
        line = rows.line_num + 1


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
