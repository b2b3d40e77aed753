"""Facts: what a model is asked, what it answers, and the files they come in."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from locate.errors import DataError, FactError, listed

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Consequence:
    """Something that would follow from the edited fact, ``hops`` steps of reasoning away.

    >>> Consequence(prompt="{} stands in the country of", target="Italy", target_before="France").hops
    1
    """

    prompt: str
    target: str
    target_before: str
    hops: int = 1

    def __post_init__(self) -> None:
        _check_template("prompt", self.prompt)
        _check_text("target", self.target)
        _check_text("target_before", self.target_before)
        if self.hops < 1:
            raise FactError(f"hops: must be 1 or more, found {self.hops}.")


@dataclass(frozen=True, kw_only=True)
class OtherRelation:
    """Another true statement about the same subject, which an edit should leave alone.

    >>> OtherRelation(prompt="{} was completed in the year", target="1889").target
    '1889'
    """

    prompt: str
    target: str

    def __post_init__(self) -> None:
        _check_template("prompt", self.prompt)
        _check_text("target", self.target)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A statement with its subject and object, such as (The Eiffel Tower, located in, Paris).

    Args:
        prompt: text with exactly one ``{}``, which the subject replaces; the object comes next.
        subject: the entity that the fact is about.
        target: the true object, without a leading space.
        target_new: a counterfactual object, for editing.
        paraphrases: other templates (one ``{}`` each) that ask for the same object.
        neighbours: full prompts about other subjects that have the same true object.
        other_relations: other facts about the same subject.
        consequences: what would follow if ``target_new`` were true.
        ranks: by model name, the rank of the target's first token after the prompt (1 is first).

    Raises:
        FactError: no or several ``{}``, an empty subject or target, or equal targets.

    >>> fact = Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    >>> fact.text
    'The Eiffel Tower is located in the city of'
    """

    # A misspelt field in a facts file is an error, and not silently ignored.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    prompt: str
    subject: str
    target: str
    target_new: str | None = None
    id: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    other_relations: tuple[OtherRelation, ...] = ()
    consequences: tuple[Consequence, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_template("prompt", self.prompt)
        _check_text("subject", self.subject)
        _check_text("target", self.target)
        if self.target_new is not None:
            _check_text("target_new", self.target_new)
            if self.target_new == self.target:
                raise FactError(
                    f"target_new: equals the target ({self.target!r}), so there would be nothing to change."
                )
        for name in ("id", "relation"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(value))  # a data set's number, say
        for name in ("paraphrases", "neighbours", "other_relations", "consequences"):
            # JSON gives lists; tuples keep a frozen fact hashable by value in its parts.
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        for index, template in enumerate(self.paraphrases):
            _check_template(f"paraphrases[{index}]", template)
        for index, text in enumerate(self.neighbours):
            _check_text(f"neighbours[{index}]", text)

    @classmethod
    def from_text(cls, text: str, *, subject: str, target: str, **fields: Any) -> "Fact":
        """A fact from a prompt written out, in which the subject occurs (its last occurrence counts).

        Raises:
            FactError: the subject does not occur in the text, or the fact is not usable.

        >>> Fact.from_text("The Louvre is in", subject="The Louvre", target="Paris").prompt
        '{} is in'
        """
        start = text.rfind(subject)
        if not subject or start < 0:
            raise FactError(f"subject: {subject!r} does not occur in the prompt {text!r}.")
        return cls(prompt=text[:start] + "{}" + text[start + len(subject) :], subject=subject, target=target, **fields)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.fill(self.prompt)

    def fill(self, template: str) -> str:
        """A template with this fact's subject in place of ``{}``.

        >>> Fact(prompt="{} is in", subject="Rome", target="Italy").fill("Where is {}?")
        'Where is Rome?'
        """
        return template.replace("{}", self.subject)


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

    Raises:
        DataError: a record is bad: the message names the file, the record's index and the field.

    >>> parse_records(Path("ages.json"), [{"age": "7"}], lambda _, record: int(record["age"]))
    [7]
    """
    parsed: list[T] = []
    problems: list[str] = []
    for index, record in enumerate(records):
        try:
            parsed.append(parse(index, record))
        except ValidationError as error:
            problems += [f"record {index}, {_problem(problem)}" for problem in error.errors()]
        except FactError as error:
            problems.append(f"record {index}, {error}")
    if problems:
        raise DataError(f"{path}: {len(problems)} problem(s) in {len(records)} records:\n{listed(problems, 10)}")
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
        raise DataError(f"{where}, {_problem(error.errors()[0])}") from error


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


def _bundled_path() -> Path:
    inside = Path(str(resources.files("locate"))) / "facts.json"
    # A wheel carries the file inside the package; a checkout keeps it in data/.
    return inside if inside.exists() else inside.parent.parent / "data" / "facts.json"


def _problem(problem: Any) -> str:
    field_name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field_name}: {message}" if field_name else message


def read_records(path: Path) -> Sequence[Any]:
    """The records of a JSON, JSONL or CSV file, unchecked.

    Raises:
        DataError: the file is missing, not readable as what its name says, or holds no list of records.

    >>> [record["subject"] for record in read_records(Path("my_facts.json"))]
    ['Rome']
    """
    if not path.is_file():
        raise DataError(f"There is no facts file {str(path)!r}.")
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
                raise DataError(f"{path}: unknown file type {other!r}; facts come as .json, .jsonl or .csv.")
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from error
    if isinstance(records, dict):  # a file with a single fact
        records = [records]
    if not isinstance(records, list) or not records:
        found = "an empty one" if records == [] else type(records).__name__
        raise DataError(f"{path}: expected a non-empty list of facts, found {found}.")
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


def as_tuple(name: str, values: Iterable[T] | str) -> tuple[T, ...]:
    """Several values as a tuple.

    Raises:
        FactError: they are one text, of which a tuple would make letters.

    >>> as_tuple("aliases", ["Rome", "Roma"])
    ('Rome', 'Roma')
    """
    if isinstance(values, str):
        raise FactError(f"{name}: takes several texts; give one as [{values!r}].")
    return tuple(values)


def _check_template(name: str, template: str) -> None:
    count = template.count("{}")
    if count != 1:
        raise FactError(f"{name}: needs exactly one {{}} where the subject goes, found {count} in {template!r}.")


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise FactError(f"{name}: is empty; give the text without a leading space.")
    if name.startswith("target") and text != text.strip():
        raise FactError(
            f"{name}: {text!r} has space around it; give it bare, the space is added where the prompt needs it."
        )
