"""Pairs of prompts that differ in their subject, and in their answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, overload

import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.measures import as_metrics
from locate.contrast.metrics import Metric
from locate.contrast.pairs import make_pairs
from locate.errors import DataError, FactError
from locate.facts.facts import Fact, as_tuple
from locate.facts.records import parse_records, read_records
from locate.showing import Shown
from locate.store.files import save_json

_STORED_AS, _FORMAT = "paired prompts", 1


class Group(NamedTuple):
    """Some of the pairs, of one length, and where they stood among all.

    >>> indices, pairs = locate.tasks.ioi(model, 4).by_length(model)[0]
    >>> len(indices) == len(pairs)
    True
    """

    indices: tuple[int, ...]
    pairs: "PairedPrompts"


@dataclass(frozen=True, kw_only=True)
class PairedPrompts(Shown):
    """Clean and corrupted prompts in pairs: as many tokens in both, of which those of the subject differ.

    Both are facts, so that all that takes facts takes them; pairs of one length (``by_length``) go together.

    Attributes:
        name: what they ask.
        clean: the prompts with their answers.
        corrupt: the same with another subject, and its answer.
        metric: what tells the two answers apart; None for the logit of the clean answer over the corrupted one.

    Raises:
        FactError: there are no pairs, or not as many of both.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> indices, group = pairs.by_length(model)[0]
    >>> patches = locate.patch(model, group.clean, group.corrupt, sites="attn_head_z", metric=group.metric)
    >>> patches.scores.dims
    ('layer', 'head')
    """

    name: str
    clean: tuple[Fact, ...]
    corrupt: tuple[Fact, ...]
    metric: Metric | str | None = None

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupt) or not self.clean:
            raise FactError(
                f"{self.name}: pairs need as many clean prompts as corrupted ones and at least one, found "
                f"{len(self.clean)} and {len(self.corrupt)}."
            )

    @classmethod
    def of(
        cls,
        clean: Sequence[Fact | str],
        corrupt: Sequence[Fact | str],
        *,
        answers: Sequence[tuple[str, str]] | None = None,
        name: str = "pairs",
        metric: Metric | str | None = None,
    ) -> "PairedPrompts":
        """Pairs of one's own.

        Args:
            clean: facts, or texts.
            corrupt: likewise.
            answers: of texts: for each pair the clean answer and the corrupted one. The words in which the two texts
                differ are the subject.
            name: what they ask.
            metric: what tells the two answers apart.

        Raises:
            FactError: not as many of both; texts without answers, or that do not differ.

        >>> texts = ["The capital of France is"], ["The capital of Italy is"]
        >>> pairs = locate.tasks.PairedPrompts.of(*texts, answers=[("Paris", "Rome")])
        >>> pairs.clean[0].subject, pairs.corrupt[0].subject
        ('France', 'Italy')
        """
        ones, others = as_tuple("clean", clean), as_tuple("corrupt", corrupt)
        given = [None] * len(ones) if answers is None else list(answers)
        if not len(ones) == len(others) == len(given):
            raise FactError(
                f"{name}: found {len(ones)} clean prompts, {len(others)} corrupted ones and {len(given)} pairs of "
                "answers; give as many of each."
            )
        facts = [_facts(*pair) for pair in zip(ones, others, given, strict=True)]
        return cls(
            name=name, clean=tuple(one for one, _ in facts), corrupt=tuple(other for _, other in facts), metric=metric
        )

    def __len__(self) -> int:
        return len(self.clean)

    def __iter__(self) -> Iterator[tuple[Fact, Fact]]:
        return iter(zip(self.clean, self.corrupt, strict=True))

    @overload
    def __getitem__(self, index: int) -> tuple[Fact, Fact]: ...
    @overload
    def __getitem__(self, index: slice) -> "PairedPrompts": ...
    def __getitem__(self, index: int | slice) -> "tuple[Fact, Fact] | PairedPrompts":
        """One pair; or those of a slice, with the same name and metric."""
        if isinstance(index, slice):
            return replace(self, clean=self.clean[index], corrupt=self.corrupt[index])
        return self.clean[index], self.corrupt[index]

    def by_length(self, model: TransformerBridge) -> tuple[Group, ...]:
        """The pairs in groups that can be run together, the shortest first: with as many tokens each.

        Raises:
            FactError: the two of a pair have not as many tokens, or their subjects stand elsewhere, or nothing differs.

        >>> groups = locate.tasks.ioi(model, 4).by_length(model)
        >>> sorted(index for group in groups for index in group.indices)
        [0, 1, 2, 3]
        """
        metrics = as_metrics("logit_diff" if self.metric is None else self.metric)
        found: dict[int, list[int]] = {}
        for index, (clean, corrupt) in enumerate(self):
            try:
                (pair,) = make_pairs(model, clean, corrupt, metrics)
            except FactError as error:
                raise FactError(f"{self.name}, pair {index}: {error}") from error
            found.setdefault(len(pair.clean.tokens), []).append(index)
        return tuple(Group(tuple(indices), self._only(indices)) for _, indices in sorted(found.items()))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per pair.

        >>> list(locate.tasks.ioi(model, 4).to_dataframe().columns)
        ['clean', 'answer', 'corrupt', 'corrupt_answer']
        """
        rows = [(clean.text, clean.target, corrupt.text, corrupt.target) for clean, corrupt in self]
        return pd.DataFrame(rows, columns=["clean", "answer", "corrupt", "corrupt_answer"])

    def _named(self) -> str:
        return f"PairedPrompts, {self.name}"

    def _headline(self) -> Mapping[str, str]:
        (clean, corrupt), metric = self[0], self.metric
        told = metric if isinstance(metric, str | None) else metric.label
        return {
            "sizes": f"{len(self)} pairs", "first": f"{clean.text} → {clean.target}",
            "against": f"{corrupt.text} → {corrupt.target}", "metric": told or "logit_diff",
        }  # fmt: skip

    def _rows(self) -> pd.DataFrame:
        return self.to_dataframe()

    def save(self, path: str | Path) -> Path:
        """Write the pairs to a JSON file, which ``load`` reads back.

        Raises:
            DataError: the metric is an object, which has no name to be found by.

        >>> locate.tasks.ioi(model, 4).save("ioi.json").name
        'ioi.json'
        """
        if not isinstance(self.metric, str | None):
            raise DataError(
                f"metric: only the name of a metric can be saved, found {type(self.metric).__name__}. Save the pairs "
                "with metric=None, and set it when they are loaded: dataclasses.replace(pairs, metric=…)."
            )
        pair = TypeAdapter(_Pair)
        records = [pair.dump_python(_Pair(*both), mode="json", exclude_defaults=True) for both in self]
        plain = {"kind": _STORED_AS, "format": _FORMAT, "name": self.name, "metric": self.metric, "pairs": records}
        return save_json(path, plain)

    @classmethod
    def load(cls, path: str | Path) -> "PairedPrompts":
        """Read pairs that were saved, checking every record.

        Raises:
            DataError: the file is missing or not of that form, or a record is bad: the message names the file, the
                pair's index and the field.

        >>> pairs = locate.tasks.ioi(model, 4)
        >>> locate.tasks.PairedPrompts.load(pairs.save("ioi.json")) == pairs
        True
        """
        path = Path(path)
        (plain,) = parse_records(path, read_records(path)[:1], lambda _, one: TypeAdapter(_Stored).validate_python(one))
        if (plain.kind, plain.format) != (_STORED_AS, _FORMAT):
            raise DataError(f"{path} holds {plain.kind!r} of format {plain.format}, not {_STORED_AS!r} of {_FORMAT}.")
        pairs = parse_records(path, plain.pairs, lambda _, one: TypeAdapter(_Pair).validate_python(one))
        return cls.of(
            [one.clean for one in pairs], [one.corrupt for one in pairs], name=plain.name, metric=plain.metric
        )

    def _only(self, indices: Sequence[int]) -> "PairedPrompts":
        clean, corrupt = (tuple(side[index] for index in indices) for side in (self.clean, self.corrupt))
        return replace(self, clean=clean, corrupt=corrupt)


@dataclass(frozen=True)
class _Pair:
    """A pair in a file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    clean: Fact
    corrupt: Fact


@dataclass(frozen=True)
class _Stored:
    """A file of pairs."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: str
    format: int
    name: str
    metric: str | None
    pairs: Annotated[list[Any], Field(min_length=1)]


def _facts(clean: Fact | str, corrupt: Fact | str, answers: tuple[str, str] | None) -> tuple[Fact, Fact]:
    """A pair as facts."""
    if isinstance(clean, Fact) and isinstance(corrupt, Fact) and answers is None:
        return clean, corrupt
    if not isinstance(clean, str) or not isinstance(corrupt, str):
        raise FactError("A pair is two facts, which have answers of their own, or two texts; found one of each kind.")
    if answers is None:
        raise FactError(f'{clean!r} says no answer. Give answers=[("…", "…"), …], or facts in place of texts.')
    words, others = clean.split(" "), corrupt.split(" ")
    start = _alike(words, others)
    if start == max(len(words), len(others)):
        raise FactError(f"The clean and the corrupted text are the same: {clean!r}.")
    most = min(len(words), len(others)) - start
    behind = min(_alike(words[::-1], others[::-1]), most)
    subjects = [" ".join(one[start : len(one) - behind]) for one in (words, others)]
    if not all(subjects):
        raise FactError(f"{corrupt!r} must have other words in place of some of {clean!r}, not only more or fewer.")
    prompt = " ".join([*words[:start], "{}", *words[len(words) - behind :]])
    one, other = answers
    return (
        Fact(prompt=prompt, subject=subjects[0], target=one, target_new=other),
        Fact(prompt=prompt, subject=subjects[1], target=other, target_new=one),
    )


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
