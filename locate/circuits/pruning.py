"""Circuits by taking edges away one after the other (ACDC), many tries at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.circuit import Circuit
from locate.circuits.cutting import Edge
from locate.circuits.evaluating import Measured, by_pair
from locate.circuits.gathering import Gathered, Pairs
from locate.circuits.judging import check_model
from locate.circuits.running import run_circuits
from locate.circuits.selecting import Edges, Feeds, feeding
from locate.contrast.contrast import Contrast
from locate.contrast.corruption import Corruption
from locate.contrast.metrics import Metric, Metrics
from locate.contrast.pairs import Text
from locate.errors import LocateError, suggest
from locate.model.anatomy import norm_after
from locate.names import DEFAULT_BUDGET
from locate.sites.graph import Graph

Order = Literal["smallest", "latest"]
# How many edges are tried at first, before it shows how well the outcome is foreseen.
_AT_FIRST = 8


@torch.inference_mode(False)
def prune_edges(
    model: TransformerBridge,
    circuit: Circuit,
    pairs: Pairs,
    corrupt: Corruption | Text | Sequence[Text] | None = None,
    *,
    threshold: float,
    metric: Metrics | None = None,
    order: Order | str = "smallest",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Circuit:
    """Take away edges one after the other, as long as the answer stays what it is in the whole model.

    As in Conmy et al. 2023 (arXiv:2304.14997): reader by reader from the logits backwards, each of a reader's edges is
    cut besides those that are gone already, and brings what its writer writes in the corrupted run. If the metric is
    then, in the mean over pairs, less than ``threshold`` further from what it is in the model as it is, the edge is
    gone for good. What comes out is what trying one edge after the other gives; but many are tried at a time, under a
    guess of what becomes of those before.

    Args:
        model: a raw-mode bridge.
        circuit: what is taken from: of ``find_circuit``, with ``top`` to begin with fewer edges.
        pairs: as in ``find_circuit``.
        corrupt: as in ``find_circuit``.
        threshold: in units of the metric, above 0.
        metric: of several the first counts; by default as in ``find_circuit``. The original uses
            ``locate.kl_divergence()``.
        order: which of a reader's edges is tried first: that with the ``"smallest"`` score, or, as in the original,
            the one whose writer comes ``"latest"``.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        The circuit of what is left. Its ``info`` says how many edges were ``tried`` and in how many ``batches``.

    Raises:
        FactError: there are no pairs, or prompts of a pair do not fit each other.
        LocateError: the threshold is not above 0, an unknown order, the circuit is of another model, or the metric is
            the same with all edges and without any.
        ModelError: as ``find_circuit`` does.

    >>> pairs = locate.tasks.ioi(model, 4)
    >>> circuit = locate.find_circuit(model, pairs, method="eap", progress=False).top(40)
    >>> locate.prune_edges(model, circuit, pairs, threshold=0.01, progress=False).n_edges < 40
    True
    """
    if not threshold > 0:
        raise LocateError(f"threshold: must be above 0, found {threshold}.")
    if order not in get_args(Order):
        raise LocateError(f"There is no order {order!r} to try edges in. {suggest(order, get_args(Order))}")
    graph = check_model(circuit, model)
    gathered = Gathered(model, pairs, corrupt, metric=metric, budget=budget)
    contrasts = list(gathered.contrasts())
    metrics = contrasts[0].metrics(gathered.metric)[:1]
    pruning = _Pruning(
        runs=_Runs(contrasts=contrasts, graph=graph, metrics=metrics),
        threshold=threshold, sizes=np.abs(circuit.scores.values), fed=reached_by(model, circuit),
        kept=circuit.kept.values.copy(), ahead=in_order(circuit, order),
    )  # fmt: skip
    with tqdm(total=len(pruning.ahead), desc="pruning", unit="edge", disable=not progress, delay=1) as bar:
        for done in pruning.run():
            bar.update(done)
    info = {
        **circuit.info, "pruned_by": metrics[0].name, "threshold": threshold, "order": order,
        "tried": len(pruning.tried), "batches": pruning.batches, "pruning_pairs": len(gathered),
    }  # fmt: skip
    return replace(circuit, kept=circuit.kept.copy(data=pruning.kept), info=info)


def reached_by(model: TransformerBridge, circuit: Circuit) -> Feeds:
    """Which readers matter through these writers alone, so that they do not once none of those is read any more.

    What enters a norm after attention sets the scale for all heads of its layer: no head there can be left out.

    >>> int(reached_by(model, circuit)[-2].sum())
    1
    """
    fed = feeding(circuit.writers, circuit.readers)
    for place, one in enumerate(circuit.readers):
        if one.head is not None and norm_after(model.blocks[one.layer], "attn") is not None:
            fed[place] = False
    return fed


def in_order(circuit: Circuit, order: Order | str) -> list[Edge]:
    """A circuit's edges as they are tried.

    >>> edges = in_order(circuit.top(20), "latest")
    >>> edges[0][1] == len(circuit.readers) - 1, edges[0] > edges[1]
    (True, True)
    """
    kept, sizes = circuit.kept.values, np.abs(circuit.scores.values)
    found: list[Edge] = []
    for reader in reversed(range(len(circuit.readers))):
        writers = [int(writer) for writer in np.flatnonzero(kept[:, reader])[::-1]]
        if order == "smallest":
            writers.sort(key=lambda writer, reader=reader: sizes[writer, reader])
        found += [(writer, reader) for writer in writers]
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Runs:
    """How far circuits are from the model as it is."""

    contrasts: Sequence[Contrast]
    graph: Graph
    metrics: tuple[Metric, ...]

    @property
    def together(self) -> int:
        """How many circuits make up one pass."""
        rooms = [one.target.rows_at_a_time(one.first) // len(one.rows) for one in self.contrasts]
        return max(1, min(rooms))

    def whole(self) -> Float[np.ndarray, "pair"]:
        """The metric in the model as it is."""
        ends = [by_pair(one, one.ends(self.metrics).target[:, 0].float()) for one in self.contrasts]
        return np.concatenate(ends)

    def values(self, kept: Sequence[Edges]) -> Float[np.ndarray, "circuit pair"]:
        """The metric in circuits."""
        masks = torch.from_numpy(np.stack(kept))
        return np.concatenate(
            [by_pair(one, run_circuits(one, self.graph, masks, self.metrics)[..., 0]) for one in self.contrasts],
            axis=-1,
        )


@dataclass(kw_only=True, eq=False)
class _Pruning:
    """One edge after the other, tried in batches.

    In a batch each edge is cut from what would be left if all before it in the batch came out as guessed. Outcomes
    count up to the first that was guessed wrong, and that one as well: it was tried on what really was left.

    Attributes:
        sizes: of the scores: what guesses go by.
        kept: what is left.
        ahead: the edges, in the order in which they are tried.
        tried: the size of each edge that was run, and whether it went.
        batches: how many there were.
    """

    runs: _Runs
    threshold: float
    sizes: Float[np.ndarray, "writer reader"]
    fed: Feeds
    kept: Bool[np.ndarray, "writer reader"]
    ahead: list[Edge]
    tried: list[tuple[float, bool]] = field(default_factory=list)
    batches: int = 0

    def run(self) -> Iterator[int]:
        """Try them all; says after each batch how many edges are done."""
        whole, most = self.runs.whole(), self.runs.together
        start, empty = self.runs.values([self.kept, np.zeros_like(self.kept)])
        Measured(values=start[None], whole=whole, empty=empty, metric=self.runs.metrics[0].name).check()
        distance = float(np.abs(start - whole).mean())
        place, size = 0, min(_AT_FIRST, most)
        while batch := list(self._batch(place, size)):
            found = np.abs(self.runs.values([left for _, _, left in batch]) - whole).mean(-1)
            self.batches += 1
            right, before = 0, place
            for (place, guess, left), value in zip(batch, found.tolist(), strict=True):
                gone = value - distance < self.threshold
                edge = self.ahead[place]
                self.tried.append((float(self.sizes[edge]), gone))
                self.kept = left
                if gone:
                    distance = value
                else:
                    self.kept[edge] = True
                if gone != guess:
                    break
                right += 1
            place += 1
            yield place - before
            size = min(most, 2 * size if right == len(batch) else max(2, right))
        self.kept = self._without_dead(place)

    def _batch(self, place: int, size: int) -> Iterator[tuple[int, bool, Edges]]:
        """The next edges to try, what is guessed of each, and what is left without it."""
        cutoff, kept = self._cutoff(), self.kept
        for at in range(place, len(self.ahead)):
            if size == 0:
                return
            edge = self.ahead[at]
            left = kept.copy()
            left[edge] = False
            if self._is_dead(kept, edge):
                kept = left
                continue
            guess = bool(self.sizes[edge] < cutoff)
            yield at, guess, left
            kept = left if guess else kept
            size -= 1

    def _is_dead(self, kept: Edges, edge: Edge) -> bool:
        """Whether nothing that the edge's reader feeds is read any more: cutting it changes nothing."""
        fed = self.fed[edge[1]]
        return bool(fed.any()) and not bool(kept[fed].any())

    def _without_dead(self, place: int) -> Edges:
        kept = self.kept.copy()
        for edge in self.ahead[place:]:
            kept[edge] = False
        return kept

    def _cutoff(self) -> float:
        """The size that parts best, among the edges tried so far, those that went from those that stayed."""
        if not self.tried:
            return float("inf")
        sizes, gone = np.array([size for size, _ in self.tried]), np.array([one for _, one in self.tried])
        order = np.argsort(sizes, kind="stable")
        stayed = np.concatenate([[0], np.cumsum(~gone[order])])
        went = gone.sum() - np.concatenate([[0], np.cumsum(gone[order])])
        return float(np.append(sizes[order], np.inf)[(stayed + went).argmin()])
