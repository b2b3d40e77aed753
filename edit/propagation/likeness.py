"""How alike two tables of scores are: the largest places, the order, the mass, and how far it has to be moved."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog
from scipy.sparse import coo_array
from scipy.stats import rankdata


def earth_movers(one: Float[np.ndarray, "place layer"], other: Float[np.ndarray, "place layer"]) -> float:
    """The least work that makes one of the other: mass times the distance over which it is moved.

    Both are taken without what is negative or missing, and sum to 1. The ground metric counts steps of the grid, each
    axis of length 1: from the first layer to the last as far as from the first place to the last. Along steps all
    paths lead, so that the least cost of a flow from cell to cell beside it is that of the whole transport, with as
    many unknowns as there are steps and not as there are pairs of cells.

    Returns:
        From 0 (alike) to 2; NaN where one of them has no mass.

    >>> corner = np.eye(3)[:, :1] * np.eye(4)[:1]
    >>> [round(earth_movers(corner, other), 6) for other in (corner, corner[::-1], corner[::-1, ::-1])]
    [0.0, 1.0, 2.0]
    """
    first, second = (np.clip(np.nan_to_num(each.astype(float)), 0, None) for each in (one, other))
    if not (first.sum() > 0 and second.sum() > 0):
        return float("nan")
    surplus = (first / first.sum() - second / second.sum()).ravel()
    surplus -= surplus.mean()  # rounding: what leaves must arrive
    height, width = one.shape
    cells = np.arange(height * width).reshape(height, width)
    steps = [(cells[:-1], cells[1:], height), (cells[:, :-1], cells[:, 1:], width)]
    ends = [np.stack([a.ravel(), b.ravel()]) for a, b, _ in steps]
    start, end = np.concatenate([*ends, *(one[::-1] for one in ends)], axis=1)
    lengths = np.concatenate([np.full(a.size, 1 / max(size - 1, 1)) for a, _, size in steps] * 2)
    if not len(start):
        return 0.0
    places = np.arange(len(start))
    signs = np.repeat([1.0, -1.0], len(start))
    leaving = coo_array((signs, (np.concatenate([start, end]), np.concatenate([places, places]))))
    found = linprog(lengths, A_eq=leaving.tocsr(), b_eq=surplus, method="highs")
    return max(float(found.fun), 0.0)


def mass_moved(one: Float[np.ndarray, "*site"], other: Float[np.ndarray, "*site"]) -> float:
    """The total variation between two tables of scores without their sign, each as shares of its sum.

    Returns:
        From 0 (alike) to 1; NaN where one of them has none.

    >>> mass_moved(np.array([-1.0, 1.0, np.nan]), np.array([3.0, 1.0, np.nan]))
    0.25
    """
    first, second = (np.nan_to_num(np.abs(each.astype(float))) for each in (one, other))
    if not (first.sum() > 0 and second.sum() > 0):
        return float("nan")
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)


def overlap(one: Float[np.ndarray, "*site"], other: Float[np.ndarray, "*site"], k: int) -> float:
    """The share of the k largest values of one that stand at the same places as those of the other.

    >>> overlap(np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0]), 2)
    0.5
    """
    tops = [set(np.argsort(-np.nan_to_num(each, nan=-np.inf).ravel(), kind="stable")[:k]) for each in (one, other)]
    return len(tops[0] & tops[1]) / len(tops[0])


def spearman(one: Float[np.ndarray, "*site"], other: Float[np.ndarray, "*site"]) -> float:
    """The rank correlation over all places that both have; NaN where there is no order.

    >>> spearman(np.array([3.0, 2.0, 1.0, np.nan]), np.array([2.0, 1.5, 0.0, 1.0]))
    1.0
    """
    both = np.isfinite(one) & np.isfinite(other)
    ranks = [rankdata(each[both]) for each in (one, other)]
    if any(len(np.unique(each)) < 2 for each in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
