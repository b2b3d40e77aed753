"""A circuit: scored edges between the components of a model, of which some are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import networkx as nx
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits import judging
from locate.circuits.arrays import Array, check_arrays, labelled, named
from locate.circuits.comparing import CircuitDiff, check_alike, compared
from locate.circuits.faithfulness import Faithfulness
from locate.circuits.files import read_circuit, write_circuit
from locate.circuits.gathering import Pairs
from locate.circuits.networks import network, takes_part
from locate.circuits.selecting import Edges, Feeds, as_count, feeding, grown, largest, on_a_path, possible_edges
from locate.contrast.corruption import Corruption
from locate.contrast.pairs import Text
from locate.errors import DataError, LocateError, suggest
from locate.showing import Shown
from locate.sites.components import Component, site_written
from locate.sites.graph import Graph
from locate.sites.site import Site
from locate.store.files import to_plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


How = Literal["greedy", "threshold"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Circuit(Shown):
    """Scored edges between what writes to a model's residual stream and what reads from it, of which some are kept.

    Attributes:
        scores: with dims ``writer`` and ``reader``; NaN where no edge is possible, or its score was not saved.
        standard_error: of the scores, over pairs.
        by_position: the scores with a dim ``position`` before the others.
        kept: which edges are in the circuit: all possible ones at first.
        writers: the components that write, in order of computation.
        readers: those that read.
        info: how it was found; ``model_print`` is the fingerprint of the model.

    Raises:
        LocateError: arrays of other components, or an edge is kept that is impossible or has no score.

    >>> circuit.top(20).prune().nodes[-1], circuit.n_edges == circuit.n_possible
    ('logits', True)
    """

    scores: xr.DataArray
    kept: xr.DataArray
    writers: tuple[Component, ...]
    readers: tuple[Component, ...]
    standard_error: xr.DataArray | None = None
    by_position: xr.DataArray | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arrays(self, self._possible)

    @classmethod
    def of(
        cls,
        graph: Graph,
        scores: Array,
        *,
        model_print: str,
        standard_error: Array | None = None,
        by_position: Array | None = None,
        kept: Array | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> "Circuit":
        """A circuit from arrays of writers by readers, as a model's graph has them.

        Args:
            graph: of the model.
            scores: what stands where no edge is possible does not count.
            model_print: the model's fingerprint.
            standard_error: of the scores.
            by_position: the scores of each position, which come first.
            kept: which edges are in the circuit; all possible ones if left out.
            info: anything JSON can hold.

        Raises:
            LocateError: a score is not finite, or an array has another shape.

        >>> from locate.sites.graph import graph
        >>> found = graph(model)
        >>> locate.Circuit.of(found, np.ones(found.edges().shape), model_print="none").top(1).nodes
        ('embed', 'logits')
        """
        possible = graph.edges()
        return cls(
            scores=labelled(graph, scores),
            standard_error=None if standard_error is None else labelled(graph, standard_error),
            by_position=None if by_position is None else labelled(graph, by_position, np.float32),
            kept=labelled(graph, possible if kept is None else kept, bool),
            writers=graph.writers, readers=graph.readers, info={**(info or {}), "model_print": model_print},
        )  # fmt: skip

    @cached_property
    def _possible(self) -> Edges:
        return possible_edges(self.writers, self.readers)

    @cached_property
    def _fed(self) -> Feeds:
        return feeding(self.writers, self.readers)

    @property
    def n_edges(self) -> int:
        """How many edges are kept."""
        return int(self.kept.values.sum())

    @property
    def n_possible(self) -> int:
        """How many there could be."""
        return int(self._possible.sum())

    @property
    def nodes(self) -> tuple[str, ...]:
        """The components that take part, in order of computation; a head is one, whatever it reads by."""
        there = np.flatnonzero(takes_part(self.kept.values, self._fed)).tolist()
        ends = np.flatnonzero(self.kept.values.any(0) & ~self._fed.any(1)).tolist()
        return (*(self.writers[at].name for at in there), *(self.readers[to].name for to in ends))

    @property
    def edges(self) -> list[tuple[str, str, float]]:
        """Writer, reader and score of the kept edges, the largest first."""
        scores, places = self.scores.values, np.argwhere(self.kept.values)
        found = [(self.writers[at].name, self.readers[to].name, float(scores[at, to])) for at, to in places]
        return sorted(found, key=lambda one: -abs(one[2]))

    @property
    def graph(self) -> nx.MultiDiGraph:
        """The kept edges as a network of components; what edges are keyed by is the reader.

        >>> sorted(circuit.graph.nodes["a3.h1"].items())
        [('head', 1), ('kind', 'head'), ('layer', 3)]
        """
        return network(self.writers, self.readers, self.kept.values, self.scores.values, self._fed)

    def top(self, k: int | float, how: How = "greedy", *, absolute: bool = True) -> "Circuit":
        """The circuit of its best edges.

        Args:
            k: how many, or as a float which share of the possible ones.
            how: ``"threshold"`` takes the largest scores; ``"greedy"`` grows from the logits, each time by the largest
                edge into a component that is there already, so that everything reaches them.
            absolute: whether scores are compared without their sign.

        Raises:
            LocateError: there are fewer edges.

        >>> circuit.top(20).n_edges, circuit.top(1.0, "threshold").n_edges == circuit.n_possible
        (20, True)
        """
        if how not in get_args(How):
            raise LocateError(f"There is no way {how!r} to choose edges. {suggest(how, get_args(How))}")
        count = as_count(k, self.n_possible, "top")
        if count > self.n_edges:
            raise LocateError(f"top: {count} edges were asked for, and the circuit has {self.n_edges}.")
        values, allowed = np.abs(self.scores.values) if absolute else self.scores.values, self.kept.values
        chosen = largest(values, allowed, count) if how == "threshold" else grown(values, allowed, self._fed, count)
        if chosen.sum() < count:
            raise LocateError(
                f"top: {count} edges were asked for, and {chosen.sum()} of the circuit's {self.n_edges} lead to the "
                "logits. Ask for fewer, or for how='threshold'."
            )
        return self._keeping(chosen)

    def prune(self) -> "Circuit":
        """Only the edges on a path from the embedding to the logits.

        A component goes on with whatever it reads: of a head, one of query, key and value is enough.

        >>> circuit.top(50).prune().n_edges <= 50
        True
        """
        source = np.array([one.order == 0 for one in self.writers])
        return self._keeping(on_a_path(self.kept.values, self._fed, source))

    def __or__(self, other: "Circuit") -> "Circuit":
        """The edges of both; scores are the first one's."""
        check_alike(self, other)
        whole = replace(self, scores=self.scores.fillna(other.scores))
        return whole._keeping(self.kept.values | other.kept.values)

    def __and__(self, other: "Circuit") -> "Circuit":
        """The edges that both have; scores are the first one's."""
        check_alike(self, other)
        return self._keeping(self.kept.values & other.kept.values)

    def __sub__(self, other: "Circuit") -> "Circuit":
        """The edges that the other does not have."""
        check_alike(self, other)
        return self._keeping(self.kept.values & ~other.kept.values)

    def diff(self, other: "Circuit") -> CircuitDiff:
        """How it differs from another circuit of the same model, or of that model with other weights, as after an edit.

        Raises:
            LocateError: the other is of a model that is built otherwise.

        >>> circuit.top(20).diff(circuit.top(30)).jaccard
        0.6666666666666666
        """
        return compared(self, other)

    def overlap(self, other: "Circuit") -> float:
        """The share of its edges that another circuit of the same model has as well; NaN if it has no edges.

        >>> circuit.top(20).overlap(circuit.top(30))
        1.0
        """
        both = (self & other).n_edges
        return both / self.n_edges if self.n_edges else float("nan")

    def best(self) -> Site:
        """Where the head or MLP writes whose kept edges weigh most: their absolute scores, summed.

        That is often the first MLP, by which later heads tell tokens apart, and hardly where to edit a fact:
        ``to_dataframe()`` has the scores of all others.

        Raises:
            LocateError: no head and no MLP writes in the circuit.

        >>> circuit.best().kind in ("attn_head", "mlp")
        True
        """
        weight = np.where(self.kept.values, np.abs(self.scores.values), 0).sum(1)
        inner = self.kept.values.any(1) & np.array([one.order > 0 for one in self.writers])
        if not inner.any():
            raise LocateError("No head and no MLP writes in this circuit, so none of them is best.")
        return site_written(self.writers[int(np.where(inner, weight, -1).argmax())].name)

    def faithfulness(
        self,
        model: TransformerBridge,
        pairs: Pairs,
        corrupt: Corruption | Text | Sequence[Text] | None = None,
        **options: Any,
    ) -> Faithfulness:
        """Run its best edges alone, at several sizes; see ``locate.circuits.judging.faithfulness``.

        >>> curve = circuit.faithfulness(model, locate.tasks.ioi(model, 4), sizes=[20, 1.0], progress=False)
        >>> round(float(curve.curve[-1]), 4)
        1.0
        """
        return judging.faithfulness(self, model, pairs, corrupt, **options)

    def completeness(
        self,
        model: TransformerBridge,
        pairs: Pairs,
        corrupt: Corruption | Text | Sequence[Text] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Take the same parts out of it and of the model; see ``locate.circuits.judging.completeness``."""
        return judging.completeness(self, model, pairs, corrupt, **options)

    def minimality(
        self,
        model: TransformerBridge,
        pairs: Pairs,
        corrupt: Corruption | Text | Sequence[Text] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Take each part out of it by itself; see ``locate.circuits.judging.minimality``."""
        return judging.minimality(self, model, pairs, corrupt, **options)

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each possible edge, in order of computation.

        >>> circuit.to_dataframe().columns[:4].tolist()
        ['writer', 'reader', 'input', 'writer_layer']
        """
        at, to = np.nonzero(self._possible)
        written, read = ([side[place] for place in places] for side, places in ((self.writers, at), (self.readers, to)))
        error = self.standard_error
        return pd.DataFrame({
            "writer": [one.name for one in written], "reader": [one.name for one in read],
            "input": [one.input for one in read], "writer_layer": [one.layer for one in written],
            "reader_layer": [one.layer for one in read], "score": self.scores.values[at, to],
            "standard_error": np.nan if error is None else error.values[at, to], "kept": self.kept.values[at, to],
        })  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write it to one file: whole as ``.safetensors``, or for people to read as ``.json``.

        JSON has the kept edges only; the other scores, and those by position, are not in it.

        Raises:
            DataError: another ending.

        >>> circuit.save("circuit.json").name
        'circuit.json'
        """
        arrays = {name: getattr(self, name) for name in ("scores", "kept", "standard_error", "by_position")}
        plain = {"writers": self.writers, "readers": self.readers, "info": to_plain(self.info)}
        return write_circuit(path, {name: one.values for name, one in arrays.items() if one is not None}, plain)

    def plot(self, **options: Any) -> "Figure":
        """A layered graph; see ``locate.plots.plot_circuit``."""
        return import_module("locate.circuits.figures").plot_circuit(self, **options)

    def _keeping(self, kept: Bool[np.ndarray, "writer reader"]) -> "Circuit":
        return replace(self, kept=self.kept.copy(data=kept))

    def _headline(self) -> dict[str, str]:
        metric, n = self.info.get("metric", ""), self.info.get("pairs", "")
        size = f"{self.n_edges} of {self.n_possible} edges, {len(self.nodes)} nodes"
        return {"on": f"{n} pairs, {metric}" if n else metric, "sizes": size, "best": self._chosen()}

    def _rows(self) -> pd.DataFrame:
        return pd.DataFrame(self.edges[:10], columns=["writer", "reader", "score"])  # type: ignore[arg-type]

    def _picture(self) -> "Figure":
        return self.top(min(20, self.n_edges), "threshold").plot()


def load_circuit(path: str | Path) -> Circuit:
    """Read a circuit that ``Circuit.save`` wrote.

    Raises:
        DataError: the file is missing, damaged, or holds something else.

    >>> locate.load_circuit("circuit.safetensors").info["method"]
    'made up'
    """
    arrays, plain = read_circuit(path)
    try:
        return Circuit(**named(arrays, plain["writers"], plain["readers"]), **plain)
    except (LocateError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
