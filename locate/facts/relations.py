"""Relations in the form in which Hernandez et al. 2024 published theirs: templates, and subjects with their objects."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from locate.errors import DataError, FactError
from locate.facts.facts import Fact
from locate.facts.records import field_problem, parse_records

# Some of the published files write an accent as the escape of an escape.
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation, ways to ask for it, and whom it holds between.

    Attributes:
        name: of the relation.
        facts: one for each subject and object, asked by the first template, with the others as paraphrases.
        templates: that ask where examples stand before the question.
        zero_shot: templates that say enough to ask without examples.
        properties: what its authors say of it, such as ``relation_type``.

    >>> relation = locate.load_relation("capitals.json")
    >>> relation.facts[0].text, relation.properties["relation_type"]
    ('The capital of France is', 'factual')
    """

    name: str
    facts: tuple[Fact, ...]
    templates: tuple[str, ...]
    zero_shot: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def asked(self, template: str) -> tuple[Fact, ...]:
        """The facts, asked by another template.

        Raises:
            FactError: it does not have one ``{}``.

        >>> locate.load_relation("capitals.json").asked("{}'s capital is")[0].text
        "France's capital is"
        """
        others = tuple(one for one in (*self.templates, *self.zero_shot) if one != template)
        return tuple(replace(fact, prompt=template, paraphrases=others) for fact in self.facts)


@dataclass(frozen=True)
class _Sample:
    subject: str
    object: str


@dataclass(frozen=True)
class _File:
    name: str
    prompt_templates: tuple[str, ...]
    samples: tuple[Any, ...]
    prompt_templates_zs: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)


def load_relation(path: str | Path) -> Relation:
    """Read a relation from a JSON file in the published form, checking every sample.

    A file has ``name``, ``prompt_templates``, ``samples`` (``subject`` and ``object`` of each), and where wanted
    ``prompt_templates_zs`` and ``properties``.

    Raises:
        DataError: the file is missing or not of that form, or a sample is bad: the message names the file, the
            sample's index and the field.

    >>> len(locate.load_relation("capitals.json").facts)
    2
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no relation file {str(path)!r}.")
    try:
        whole = TypeAdapter(_File).validate_python(json.loads(path.read_text(encoding="utf-8-sig")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    except ValidationError as error:
        raise DataError(f"{path}, {field_problem(error.errors()[0])}") from error
    templates, zero_shot = whole.prompt_templates, whole.prompt_templates_zs
    for name, found in (("prompt_templates", templates), ("samples", whole.samples)):
        if not found:
            raise DataError(f"{path}: {name} is empty; give at least one.")
    sample = TypeAdapter(_Sample)

    def parse(_: int, record: Any) -> Fact:
        pair = sample.validate_python(record)
        return Fact(
            prompt=templates[0], subject=_unescaped(pair.subject), target=_unescaped(pair.object), relation=whole.name,
            paraphrases=(*templates[1:], *zero_shot),
        )  # fmt: skip

    facts = tuple(parse_records(path, whole.samples, parse))
    return Relation(
        name=whole.name, facts=facts, templates=templates, zero_shot=zero_shot, properties=whole.properties
    )  # fmt: skip


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).strip()


def facts_of(relation: Relation | Sequence[Fact]) -> list[Fact]:
    """The facts of a relation, or those given for one.

    Raises:
        FactError: there are none, or they are of several relations.

    >>> len(facts_of(locate.bundled_facts("country_capital")))
    11
    """
    facts = list(relation.facts if isinstance(relation, Relation) else relation)
    if not facts:
        raise FactError("There are no facts; give those of one relation.")
    if len(relations := {fact.relation for fact in facts}) > 1:
        raise FactError(
            f"The facts are of {len(relations)} relations: {', '.join(sorted(map(repr, relations))[:5])}. "
            "A linear relation is fitted to the facts of one."
        )
    return facts
