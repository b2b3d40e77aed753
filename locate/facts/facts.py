"""Facts: what a model is asked, what it answers, and the files they come in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict

from locate.errors import FactError
from locate.facts.subjects import find_subject, same_text

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Consequence:
    """Something that would follow from the edited fact, ``hops`` steps of reasoning away where that is known.

    >>> Consequence(prompt="{} stands in the country of", target="Italy", target_before="France", hops=1).hops
    1
    """

    prompt: str
    target: str
    target_before: str
    hops: int | None = None

    def __post_init__(self) -> None:
        _check_template("prompt", self.prompt)
        _check_text("target", self.target)
        _check_text("target_before", self.target_before)
        if self.hops is not None and self.hops < 1:
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
        target: the true object. Bare, it follows the prompt after a space where running text has one there; with a
            leading space, it keeps it.
        target_new: a counterfactual object, for editing; likewise.
        joined: whether targets follow the prompts exactly as they are given, without a space between.
        chat: whether prompts are what a user says in a chat: the tokenizer's chat template is put around each of them,
            and the model's turn begins with the answer.
        subject_aliases: other names of the subject.
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
    joined: bool = False
    chat: bool = False
    id: str | None = None
    relation: str | None = None
    subject_aliases: tuple[str, ...] = ()
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
            if same_text(self.target_new, self.target):
                raise FactError(
                    f"target_new: equals the target ({self.target!r}), so there would be nothing to change."
                )
        for name in ("id", "relation"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(value))  # a data set's number, say
        for name in ("subject_aliases", "paraphrases", "neighbours", "other_relations", "consequences"):
            # JSON gives lists; tuples keep a frozen fact hashable by value in its parts.
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        for index, alias in enumerate(self.subject_aliases):
            _check_text(f"subject_aliases[{index}]", alias)
        for index, template in enumerate(self.paraphrases):
            _check_template(f"paraphrases[{index}]", template)
        for index, text in enumerate(self.neighbours):
            _check_text(f"neighbours[{index}]", text)

    @classmethod
    def from_text(cls, text: str, *, subject: str, target: str, **fields: Any) -> "Fact":
        """A fact from a prompt written out, in which the subject occurs as a whole word (the last time counts).

        The subject is taken as the text spells it, where the two encode accents in different ways.

        Raises:
            FactError: the subject does not occur in the text, or the fact is not usable.

        >>> Fact.from_text("The Louvre is in", subject="The Louvre", target="Paris").prompt
        '{} is in'
        """
        start, end = find_subject(text, subject)
        return cls(prompt=f"{text[:start]}{{}}{text[end:]}", subject=text[start:end], target=target, **fields)

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
    if name.startswith("target") and text != text.rstrip():
        raise FactError(
            f"{name}: {text!r} has space after it; give it bare, the space before it is added where it belongs."
        )
