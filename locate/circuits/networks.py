"""A circuit as a network of components, for all that networkx can ask of one."""

from collections.abc import Sequence

import networkx as nx
import numpy as np

from locate.circuits.selecting import Edges, Feeds, Marked, Scores
from locate.sites.components import Component


def takes_part(kept: Edges, fed: Feeds) -> Marked:
    """Which writers write, or have an input that is read into.

    A key or value that heads share counts for those of them that take part otherwise, and where none does for all.
    """
    read = kept.max(0)
    own = kept.max(1) | (fed & (read & (fed.sum(1) == 1))[:, None]).max(0)
    left = read & ~(fed & own).max(1)
    return own | (fed & left[:, None]).max(0)


def network(
    writers: Sequence[Component], readers: Sequence[Component], kept: Edges, scores: Scores, fed: Feeds
) -> nx.MultiDiGraph:  # fmt: skip
    """Components as nodes; of edges, the reader as key, with ``input``, ``reader`` and ``score``.

    A head is one node; an edge into a key or value goes to each head of the network that reads through it.
    """
    found, there = nx.MultiDiGraph(), takes_part(kept, fed)
    for place in np.flatnonzero(there).tolist():
        one = writers[place]
        kind = "embed" if one.order == 0 else "mlp" if one.head is None else "head"
        found.add_node(one.name, layer=one.layer, kind=kind, head=one.head)
    for at, to in np.argwhere(kept).tolist():
        reader = readers[to]
        heads = [writers[place].name for place in np.flatnonzero(fed[to] & there).tolist()]
        if not fed[to].any():
            found.add_node(reader.name, layer=reader.layer, kind="logits", head=None)
            heads = [reader.name]
        for head in heads:
            found.add_edge(
                writers[at].name, head, key=reader.name, reader=reader.name, input=reader.input,
                score=float(scores[at, to]),
            )  # fmt: skip
    return found
