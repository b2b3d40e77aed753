"""Rank correlations of what localisation says with what edits do, with bootstrap intervals over facts."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from locate.contrast.bootstrap import mean_interval

Table = Float[np.ndarray, "fact layer"]


class Correlation(NamedTuple):
    """Spearman's rank correlation, its interval, and how many facts it is of; NaN where there is nothing to rank."""

    value: float
    low: float
    high: float
    facts: int


def pooled(one: Table, other: Table) -> float:
    """Over all facts and layers together; what is NaN in either does not count.

    >>> pooled(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]]))
    0.8
    """
    return _spearman(one.ravel(), other.ravel())


def within_layers(one: Table, other: Table) -> float:
    """Over facts, layer by layer, as Hase et al. 2023 (arXiv:2301.04213) do; the mean over layers.

    >>> within_layers(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 4.0], [2.0, 3.0]]))
    0.0
    """
    return _mean([_spearman(a, b) for a, b in zip(one.T, other.T, strict=True)])


def within_facts(one: Table, other: Table) -> float:
    """Over layers, fact by fact: whether it says which layer to edit; the mean over facts.

    >>> within_facts(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 4.0], [2.0, 3.0]]))
    1.0
    """
    return _mean(_each_fact(one, other))


WAYS: dict[str, Callable[[Table, Table], float]] = {
    "pooled": pooled, "across facts, by layer": within_layers, "across layers, by fact": within_facts,
}  # fmt: skip


def correlated(
    way: str, one: Table, other: Table, *, confidence: float = 0.95, resamples: int = 500, seed: int = 0
) -> Correlation:
    """A correlation with its percentile bootstrap over facts.

    >>> correlated("pooled", np.eye(3), np.eye(3)).value
    1.0
    """
    facts = int((~np.isnan(one + other)).any(1).sum())
    if way == "across layers, by fact":
        each = np.array(_each_fact(one, other))
        mean, low, high = mean_interval(each, confidence=confidence, resamples=max(resamples, 1), seed=seed)
        return Correlation(float(mean), float(low), float(high), facts)
    value, low, high = WAYS[way](one, other), float("nan"), float("nan")
    if facts > 1 and not np.isnan(value):
        draw = np.random.default_rng(seed)
        drawn = [
            WAYS[way](one[own], other[own]) for own in (draw.integers(0, len(one), len(one)) for _ in range(resamples))
        ]
        tail = 50 * (1 - confidence)
        low, high = (float(bound) for bound in np.nanpercentile(drawn, [tail, 100 - tail]))
    return Correlation(value, low, high, facts)


def _each_fact(one: Table, other: Table) -> list[float]:
    return [_spearman(a, b) for a, b in zip(one, other, strict=True)]


def _mean(values: list[float]) -> float:
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")


def _spearman(one: Float[np.ndarray, "value"], other: Float[np.ndarray, "value"]) -> float:
    there = ~(np.isnan(one) | np.isnan(other))
    if there.sum() < 2:
        return float("nan")
    a, b = (rankdata(values[there]) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")
