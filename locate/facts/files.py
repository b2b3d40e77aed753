"""Facts and other records from files."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from locate.errors import DataError, FactError, listed
from locate.facts.facts import Fact
from locate.facts.subjects import AbsentSubject

T = TypeVar("T")


def load_facts(path: str | Path) -> list[Fact]:
    """Read facts from a JSON, JSONL or CSV file, checking every record.

    CSV files carry the plain text columns only (``prompt, subject, target`` and, where wanted,
    ``target_new, id, relation``).

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message
            names the file, the record's index and the field.

    >>> facts = load_facts("my_facts.json")                                  # doctest: +SKIP
    """
    adapter = TypeAdapter(Fact)
    return parse_records(Path(path), read_records(Path(path)), lambda _, record: adapter.validate_python(record))


def parse_records(path: Path, records: Sequence[Any], parse: Callable[[int, Any], T]) -> list[T]:
    """Every record by ``parse(index, record)``; the bad ones are collected into one error.

    A record whose subject does not occur in its prompt is left out with a warning, which names it likewise.

    Raises:
        DataError: a record is bad: the message names the file, the record's index and the field. Or none fits.

    >>> parse_records(Path("ages.json"), [{"age": "7"}], lambda _, record: int(record["age"]))
    [7]
    """
    parsed: list[T] = []
    problems: list[str] = []
    absent: list[str] = []
    for index, record in enumerate(records):
        try:
            parsed.append(parse(index, record))
        except ValidationError as error:
            problems += [f"record {index}, {field_problem(problem)}" for problem in error.errors()]
        except AbsentSubject as error:
            absent.append(f"record {index}, {error}")
        except FactError as error:
            problems.append(f"record {index}, {error}")
    if problems or len(absent) == len(records):
        problems += absent
        raise DataError(f"{path}: {len(problems)} problem(s) in {len(records)} records:\n{listed(problems, 10)}")
    if absent:
        warnings.warn(
            f"{path}: left out {len(absent)} of {len(records)} records, whose subjects do not occur in their prompts:\n"
            f"{listed(absent, 10)}",
            stacklevel=4,
        )
    return parsed


def parse_fact(record: Any, where: str) -> Fact:
    """One fact from a plain dictionary; ``where`` names its place in error messages.

    Raises:
        DataError: a field is missing, unknown, of another type, or not usable.

    >>> parse_fact({"prompt": "{} is in", "subject": "Rome", "target": "Italy"}, "example").text
    'Rome is in'
    """
    try:
        return TypeAdapter(Fact).validate_python(record)
    except ValidationError as error:
        raise DataError(f"{where}, {field_problem(error.errors()[0])}") from error


def bundled_facts(relation: str | None = None, *, known_to: str | None = None) -> list[Fact]:
    """The facts that ship with the project, optionally of one relation or known to one model.

    Args:
        relation: keep this relation only.
        known_to: keep the facts whose target this model ranks first (a name in ``Fact.ranks``).

    >>> facts = bundled_facts(known_to="smollm2-135m")
    >>> facts[0].subject
    'The Eiffel Tower'
    """
    facts = load_facts(_bundled_path())
    if relation is not None:
        relations = {fact.relation for fact in facts}
        if relation not in relations:
            raise DataError(f"No shipped fact has the relation {relation!r}. Known: {sorted(map(str, relations))}.")
        facts = [fact for fact in facts if fact.relation == relation]
    if known_to is not None:
        facts = [fact for fact in facts if fact.ranks.get(known_to) == 1]
    return facts


def spread(facts: Sequence[Fact], n: int) -> list[Fact]:
    """So many facts, at most, that lie as far apart as they can: neighbours are often of one relation.

    >>> [fact.subject for fact in spread(bundled_facts(), 2)] == [bundled_facts()[at].subject for at in (0, 150)]
    True
    """
    n = min(n, len(facts))
    return [facts[index * len(facts) // n] for index in range(n)]


def known_facts(model: str) -> list[Fact]:
    """The shipped facts that a model of this name answers, or all of them where that is not noted.

    >>> len(known_facts("another model")) == len(bundled_facts())
    True
    """
    return bundled_facts(known_to=model) or bundled_facts()


def _bundled_path() -> Path:
    inside = Path(str(resources.files("locate"))) / "facts.json"
    # A wheel carries the file inside the package; a checkout keeps it in data/.
    return inside if inside.exists() else inside.parent.parent / "data" / "facts.json"


def field_problem(problem: Any) -> str:
    """A field of a record and what is wrong with it, of one of a ``ValidationError``'s errors."""
    field_name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field_name}: {message}" if field_name else message


def read_records(path: Path, what: str = "facts") -> Sequence[Any]:
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
                records = json.loads(text)
            case ".jsonl":
                records = _read_lines(path, text)
            case ".csv":
                rows = csv.DictReader(io.StringIO(text, newline=""))
                records = [{key: value for key, value in row.items() if value} for row in rows]
            case other:
                raise DataError(f"{path}: unknown file type {other!r}; {what} come as .json, .jsonl or .csv.")
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from error
    if isinstance(records, dict):  # a file with a single fact
        records = [records]
    if not isinstance(records, list) or not records:
        found = "an empty one" if records == [] else type(records).__name__
        raise DataError(f"{path}: expected a non-empty list of {what}, found {found}.")
    return records


def _read_lines(path: Path, text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not readable as JSON: {error.msg} at column {error.colno}"
                ) from error
    return records
