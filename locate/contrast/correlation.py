"""Rank correlations over facts and what each has of (layers, or probes), with bootstrap intervals over facts."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float
from scipy.stats import rankdata

Table = Float[np.ndarray, "fact layer"]
Tables = Float[np.ndarray, "*any fact layer"]
Values = Any


class Correlation(NamedTuple):
    """Spearman's rank correlation, its interval, and how many facts it is of; NaN where there is nothing to rank."""

    value: float
    low: float
    high: float
    facts: int


def pooled(one: Tables, other: Tables) -> Values:
    """Over all facts and layers together; what is NaN in either does not count.

    >>> float(pooled(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]])))
    0.8
    """
    return _spearman(*(rearrange(values, "... fact layer -> ... (fact layer)") for values in (one, other)))


def within_layers(one: Tables, other: Tables) -> Values:
    """Over facts, layer by layer, as Hase et al. 2023 (arXiv:2301.04213) do; the mean over layers.

    >>> float(within_layers(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 4.0], [2.0, 3.0]])))
    0.0
    """
    return _mean(_spearman(*(rearrange(values, "... fact layer -> ... layer fact") for values in (one, other))))


def within_facts(one: Tables, other: Tables) -> Values:
    """Over layers, fact by fact: whether it says which layer to edit; the mean over facts.

    >>> float(within_facts(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 4.0], [2.0, 3.0]])))
    1.0
    """
    return _mean(_spearman(one, other))


WAYS: dict[str, Callable[[Tables, Tables], Values]] = {
    "pooled": pooled, "across facts, by layer": within_layers, "across layers, by fact": within_facts,
}  # fmt: skip


def correlated(
    way: str, one: Table, other: Table, *, confidence: float = 0.95, resamples: int = 500, seed: int = 0
) -> Correlation:
    """A correlation with its percentile bootstrap over facts.

    >>> correlated("pooled", np.eye(3), np.eye(3)).value
    1.0
    """
    there = ~np.isnan(one + other)
    # Facts and layers of which nothing is known would only make all resamples be ranked one by one.
    one, other = (values[there.any(1)][:, there.any(0)] for values in (one, other))
    facts, low, high = len(one), float("nan"), float("nan")
    value = float(WAYS[way](one, other)) if facts else float("nan")
    if facts > 1 and not np.isnan(value):
        draws = np.random.default_rng(seed).integers(0, facts, (resamples, facts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # resamples without anything to rank
            tail = 50 * (1 - confidence)
            bounds = np.nanpercentile(WAYS[way](one[draws], other[draws]), [tail, 100 - tail])
        low, high = (float(bound) for bound in bounds)
    return Correlation(value, low, high, facts)


def _mean(values: Values) -> Values:
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(-1) / there.sum(-1)


def _spearman(one: Float[np.ndarray, "*any value"], other: Float[np.ndarray, "*any value"]) -> Values:
    """Along the last axis."""
    there = ~np.isnan(one + other)
    if there.all() and one.shape[-1] > 1:
        return _of_ranks(rankdata(one, axis=-1), rankdata(other, axis=-1))
    shape = one.shape[:-1]
    rows = [
        _of_ranks(rankdata(a[own]), rankdata(b[own])) if own.sum() > 1 else np.float64("nan")
        for a, b, own in zip(*(rearrange(x, "... value -> (...) value") for x in (one, other, there)), strict=True)
    ]
    return np.array(rows, dtype=float).reshape(shape)


def _of_ranks(one: Float[np.ndarray, "*any value"], other: Float[np.ndarray, "*any value"]) -> Values:
    one, other = (ranks - ranks.mean(-1, keepdims=True) for ranks in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(-1) / np.sqrt((one * one).sum(-1) * (other * other).sum(-1))
