"""Which edges belong together: the largest, those grown from the logits, those on a way through."""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from locate.errors import LocateError
from locate.sites.components import Component

Edges = Bool[np.ndarray, "writer reader"]
Scores = Float[np.ndarray, "writer reader"]
Feeds = Bool[np.ndarray, "reader writer"]
Marked = Bool[np.ndarray, "writer"]


def as_count(k: Any, n_possible: int, what: str) -> int:
    """A number of edges, given as one or, as a fraction, as a share of the possible ones.

    Raises:
        LocateError: it is neither.

    >>> as_count(0.5, 100, "top"), as_count(np.int64(7), 100, "top")
    (50, 7)
    """
    given = k.item() if isinstance(k, np.generic) else k
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise LocateError(f"{what}: give a count of edges, or a share from 0.0 to 1.0; found {k!r}.")
    if not 0 <= given <= (1 if isinstance(given, float) else given):
        raise LocateError(f"{what}: give a count of edges, or a share from 0.0 to 1.0; found {k!r}.")
    return round(given * n_possible) if isinstance(given, float) else given


def possible_edges(writers: Sequence[Component], readers: Sequence[Component]) -> Edges:
    """Which writers reach which readers, by their order (see ``locate.sites.graph``).

    >>> from locate.sites.graph import graph
    >>> found = graph(model)
    >>> bool((possible_edges(found.writers, found.readers) == found.edges()).all())
    True
    """
    written, read = (np.array([one.order for one in side]) for side in (writers, readers))
    return written[:, None] < read[None]


def feeding(writers: Sequence[Component], readers: Sequence[Component]) -> Feeds:
    """Which readers are inputs of which writers: a key or value of all heads that share it.

    >>> from locate.sites.graph import graph
    >>> found = graph(model)
    >>> place = [one.name for one in found.readers].index("a3.h1.k")
    >>> [found.writers[at].name for at in feeding(found.writers, found.readers)[place].nonzero()[0]]
    ['a3.h3', 'a3.h4', 'a3.h5']
    """
    fed = np.zeros((len(readers), len(writers)), dtype=bool)
    n_heads, n_read = {}, {}
    for one in writers:
        n_heads[one.layer] = n_heads.get(one.layer, 0) + (one.head is not None)
    for one in readers:
        n_read[one.layer, one.input] = n_read.get((one.layer, one.input), 0) + 1
    by_name = {one.name: at for at, one in enumerate(writers)}
    for at, one in enumerate(readers):
        if one.head is None:
            names = [one.name] if one.name in by_name else []
        else:
            share = n_heads[one.layer] // n_read[one.layer, one.input]
            names = [f"a{one.layer}.h{head}" for head in range(one.head * share, (one.head + 1) * share)]
        fed[at, [by_name[name] for name in names]] = True
    return fed


def largest(values: Scores, allowed: Edges, k: int) -> Edges:
    """The ``k`` edges of the largest values; of equal ones, those of the writer that comes first.

    >>> largest(np.array([[1.0, 3.0, 2.0]]), np.array([[True, False, True]]), 1)
    array([[False, False,  True]])
    """
    order = np.argsort(np.where(allowed, -values, np.inf), axis=None, kind="stable")[:k]
    chosen = np.zeros(values.size, dtype=bool)
    chosen[order] = True
    return chosen.reshape(values.shape)


def grown(values: Scores, allowed: Edges, fed: Feeds, k: int) -> Edges:
    """From the logits, edge by edge, the largest one that goes into a component which is there already.

    Gives fewer than ``k`` where no more lead to the logits.
    """
    chosen = np.zeros_like(allowed)
    for edge in islice(growth(values, allowed, fed), k):
        chosen[edge] = True
    return chosen


def growth(values: Scores, allowed: Edges, fed: Feeds) -> Iterator[tuple[int, int]]:
    """The edges in the order in which ``grown`` takes them, writer and reader."""
    opened, ahead = np.zeros(len(fed), dtype=bool), list[tuple[float, int, int]]()
    fresh = ~fed.any(1)  # what feeds no writer is the end: the logits
    while True:
        opened |= fresh
        for reader in np.flatnonzero(fresh).tolist():
            for writer in np.flatnonzero(allowed[:, reader]).tolist():
                heappush(ahead, (-float(values[writer, reader]), writer, reader))
        if not ahead:
            return
        _, writer, reader = heappop(ahead)
        yield writer, reader
        fresh = fed[:, writer] & ~opened


def on_a_path(kept: Edges, fed: Feeds, source: Marked) -> Edges:
    """Those edges that lie on a path from a source to what feeds no writer.

    A component goes on as soon as one of its inputs is reached.
    """
    arrived = _closure(source, lambda at: (at @ kept) @ fed)
    last = ~fed.any(1)
    useful = _closure(kept @ last, lambda at: kept @ (fed @ at))
    return kept & arrived[:, None] & (fed @ useful | last)


def _closure(found: Marked, step: Callable[[Marked], Marked]) -> Marked:
    """All that is found from these, step by step, until there is no more."""
    while True:
        more = found | step(found)
        if (more == found).all():
            return found
        found = more
