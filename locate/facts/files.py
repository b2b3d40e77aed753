"""Facts from files."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from locate.errors import DataError, FactError
from locate.facts.facts import Fact
from locate.facts.records import field_problem, parse_each, read_records, wrong
from locate.facts.subjects import AbsentSubject, find_subject

# In a cell of a CSV file: texts with | between them or a JSON list, and what only JSON can say.
_TEXTS = ("subject_aliases", "paraphrases", "neighbours")
_NESTED = ("other_relations", "consequences", "ranks")


def load_facts(path: str | Path) -> list[Fact]:
    """Read facts from a JSON, JSONL or CSV file, checking every record.

    A prompt may be written out instead of having a ``{}``: the last time that the subject occurs in it counts. In a
    CSV file a cell of several texts (``paraphrases``, ``neighbours``, ``subject_aliases``) has ``|`` between them, or
    is a JSON list; ``other_relations``, ``consequences`` and ``ranks`` are JSON.

    Raises:
        DataError: the file is missing or not of that form, or a record is bad: the message
            names the file, the line, the record (both counted from 1) and the field.

    >>> facts = load_facts("my_facts.json")                                  # doctest: +SKIP
    """
    facts, problems = read_facts(path)
    if problems:
        raise wrong(Path(path), problems, len(facts) + len(problems))
    return facts


def read_facts(path: str | Path) -> tuple[list[Fact], list[str]]:
    """The facts of a file that can be read, and for each other record what is wrong with it, with its place and field.

    Raises:
        DataError: as ``load_facts``, but of records only where all are bad.

    >>> facts, problems = read_facts("my_facts.json")
    >>> len(facts), problems
    (1, [])
    """
    path = Path(path)
    records, cells = read_records(path), path.suffix.lower() == ".csv"
    parsed = parse_each(records, lambda _, record: _fact(_from_cells(record) if cells else record))
    if not parsed.values:
        raise wrong(path, parsed.problems, len(records))
    return list(parsed.values.values()), parsed.problems


def parse_fact(record: Any, where: str) -> Fact:
    """One fact from a plain dictionary; ``where`` names its place in error messages.

    Raises:
        DataError: a field is missing, unknown, of another type, or not usable.

    >>> parse_fact({"prompt": "{} is in", "subject": "Rome", "target": "Italy"}, "example").text
    'Rome is in'
    """
    try:
        return _fact(record)
    except ValidationError as error:
        raise DataError(f"{where}, {field_problem(error.errors()[0])}") from error
    except FactError as error:
        raise DataError(f"{where}, {error}") from error


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


@cache
def _adapter() -> Any:
    """Made once: making it takes a hundred times as long as reading a fact by it."""
    return TypeAdapter(Fact)


def _fact(record: Any) -> Fact:
    """A fact of a record, whose prompt may be written out."""
    prompt, subject = (record.get(name) for name in ("prompt", "subject")) if isinstance(record, dict) else (None, None)
    if isinstance(prompt, str) and isinstance(subject, str) and subject.strip() and "{}" not in prompt:
        try:
            start, end = find_subject(prompt, subject)
        except AbsentSubject as error:
            hint = "" if "{}" in str(error) else " Write {} in the subject's place, or the subject as it stands there."
            raise FactError(f"{error}{hint}") from error
        record = {**record, "prompt": f"{prompt[:start]}{{}}{prompt[end:]}", "subject": prompt[start:end]}
    return _adapter().validate_python(record)


def _from_cells(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a CSV file with its lists."""
    return {name: _cell(name, text) for name, text in record.items()}


def _cell(name: str, text: Any) -> Any:
    if name in _TEXTS and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split("|") if part.strip()]
    if name not in (*_TEXTS, *_NESTED):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FactError(f"{name}: not readable as JSON: {error.msg} at column {error.colno} of {text!r}") from error
