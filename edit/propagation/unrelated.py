"""Facts that have nothing to do with each other, and how far a shift is beside what such facts differ by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from edit.evaluation.scoring import Pair, score_targets
from locate.errors import FactError, LocateError
from locate.facts.facts import Fact
from locate.facts.files import bundled_facts
from locate.facts.prompts import worded
from locate.facts.subjects import same_text
from locate.results import Result
from locate.showing import shown, spread

# How many facts stand for all others, where users name none.
FEW = 8


class About(NamedTuple):
    """What a fact is about."""

    subject: str
    target: str
    relation: str

    @classmethod
    def of(cls, fact: Fact) -> "About":
        """Of a fact; without a relation its prompt's template stands for it.

        >>> About.of(locate.Fact(prompt="{} is in", subject="The Louvre", target="Paris")).relation
        '{} is in'
        """
        return cls(fact.subject, fact.target, fact.relation or fact.prompt)

    def unrelated(self, other: "About") -> bool:
        """Whether the other is of another subject, relation and answer, and neither asks about the other's answer.

        >>> louvre = About("The Louvre", "Paris", "city")
        >>> louvre.unrelated(About("France", "Paris", "capital")), louvre.unrelated(About("Rome", "Italy", "country"))
        (False, True)
        """
        named = any(a.target.strip().casefold() in b.subject.casefold() for a, b in ((self, other), (other, self)))
        return not named and not any(same_text(one, its) for one, its in zip(self, other, strict=True))


def unrelated_facts(
    model: TransformerBridge,
    apart_from: Fact | None = None,
    n: int = FEW,
    *,
    usable: Callable[[Fact], bool] = lambda fact: True,
) -> list[Fact]:
    """Shipped facts of which no two have a subject, relation or answer in common; first those that the model answers.

    Args:
        model: a raw-mode bridge.
        apart_from: what they must not be related to either.
        n: how many, at most.
        usable: what is asked of each besides.

    >>> len({one.relation for one in unrelated_facts(model, fact, 3)} - {fact.relation})
    3
    """
    found: list[Fact] = []
    taken = [] if apart_from is None else [About.of(apart_from)]
    # Of each relation the one that most models know.
    for fact in sorted(bundled_facts(), key=lambda one: min(one.ranks.values(), default=0)):
        if all(About.of(fact).unrelated(one) for one in taken) and usable(fact):
            found.append(fact)
            taken.append(About.of(fact))
    pairs: list[Pair] = [(worded(model, one.text, chat=one.chat), one.target, one.joined) for one in found]
    ranks = [score.rank > 1 for score in score_targets(model, pairs)]
    return [found[at] for at in np.argsort(ranks, kind="stable")[:n]]


def unrelated_pairs(about: Sequence[About]) -> list[tuple[int, int]]:
    """The places of all two facts that have nothing in common.

    Raises:
        FactError: there are several facts, and no two are unrelated.

    >>> unrelated_pairs([About("Paris", "France", "country"), About("Rome", "Italy", "country")][:1])
    []
    """
    found = [(one, other) for one, other in combinations(range(len(about)), 2) if about[one].unrelated(about[other])]
    if len(about) > 1 and not found:
        raise FactError(
            f"null: no two of these {len(about)} facts are unrelated (of another subject, relation and answer), so "
            "nothing says what a shift is to be measured by. Give facts of several relations, or null=0 for none."
        )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift(Result):
    """What an edit moved, in several measures, beside what any two facts of the base model differ by.

    Attributes:
        data: ``shift`` (dims: what was compared, ``measure``), ``comparable``, the same in the form in which it can be
            held against other facts, and ``null`` (with a dim ``pair`` before the others), of two unrelated facts each.
        info: how it was made.
    """

    # What is compared, and the measures by whether more of them is more alike.
    compared: ClassVar[str]
    alike: ClassVar[Mapping[str, bool]]

    info: dict[str, Any]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each thing compared and measure: the shift, the null's mean and interval, and where it stands."""
        rows = []
        for what in self.data[self.compared].values:
            for measure in self.data["measure"].values:
                at = {self.compared: what, "measure": measure}
                null = self.data["null"].sel(at).values
                value = float(self.data["comparable"].sel(at))
                low, high = interval(null, self.info["confidence"])
                rows.append({
                    **{name: str(one) for name, one in at.items()}, "value": float(self.data["shift"].sel(at)),
                    "comparable": value, "null": _mean(null), "null_low": low, "null_high": high,
                    "percentile": percentile(value, null), "verdict": self._verdict(value, null, str(measure)),
                })  # fmt: skip
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, float]:
        """Numbers to compare edits by: each shift, and its percentile among unrelated facts.

        >>> list(traced_shift.summary())[:2]
        ['mlp overlap', 'mlp overlap, percentile']
        """
        found: dict[str, float] = {}
        for row in self.to_dataframe().to_dict("records"):
            name = f"{row[self.compared]} {row['measure']}"
            found |= {name: row["value"], f"{name}, percentile": row["percentile"]}
        return found

    def verdict(self, what: str, measure: str) -> str:
        """Where the shift stands among unrelated facts, in words that follow from its numbers.

        Raises:
            LocateError: that was not compared.
        """
        for name, given in ((self.compared, what), ("measure", measure)):
            if given not in (known := [str(one) for one in self.data[name].values]):
                raise LocateError(f"{name}: there are {', '.join(known)}; found {given!r}.")
        at = {self.compared: what, "measure": measure}
        return self._verdict(float(self.data["comparable"].sel(at)), self.data["null"].sel(at).values, measure)

    def _found(self) -> str:
        first: Any = self.to_dataframe().iloc[0]
        null = spread(first["null"], first["null_low"], first["null_high"])
        return f"{first[self.compared]} {first['measure']} {shown(first['value'])}, unrelated facts {null}"

    def _rows(self) -> pd.DataFrame:
        return self.to_dataframe().drop(columns="comparable")

    def _verdict(self, value: float, null: Float[np.ndarray, "pair"], measure: str) -> str:
        return standing(value, null, alike=self.alike[measure], confidence=self.info["confidence"])


def interval(null: Float[np.ndarray, "pair"], confidence: float) -> tuple[float, float]:
    """Between which bounds that share of values lies; NaN without any.

    >>> interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    known, tail = null[np.isfinite(null)], 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def percentile(value: float, null: Float[np.ndarray, "pair"]) -> float:
    """The share of values below one, in percent; equal ones count half. NaN without any.

    >>> percentile(2.0, np.array([1.0, 2.0, 3.0, 4.0]))
    37.5
    """
    known = null[np.isfinite(null)]
    if not len(known) or np.isnan(value):
        return float("nan")
    return float(100 * ((known < value).mean() + (known == value).mean() / 2))


def standing(value: float, null: Float[np.ndarray, "pair"], *, alike: bool, confidence: float) -> str:
    """Where a value stands among those of unrelated facts.

    Args:
        value: of what is judged.
        null: of pairs of unrelated facts.
        alike: whether more of it is more alike.
        confidence: of the null's interval, in which a value is like any other.

    >>> standing(0.9, np.linspace(0, 0.5), alike=True, confidence=0.95)
    'more alike than unrelated facts'
    >>> standing(0.2, np.linspace(0, 0.5), alike=True, confidence=0.95)
    'as unrelated facts are'
    """
    low, high = interval(null, confidence)
    if np.isnan(value):
        return "not measured"
    if np.isnan(low):
        return "no unrelated facts to compare with"
    if low <= value <= high:
        return "as unrelated facts are"
    return "more alike than unrelated facts" if (value > high) == alike else "less alike than unrelated facts"


def _mean(null: Float[np.ndarray, "pair"]) -> float:
    return float(np.nanmean(null)) if np.isfinite(null).any() else float("nan")
