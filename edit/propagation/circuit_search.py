"""Finding the circuit of an edit: edges by their scores, as few as carry enough, confirmed by running them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.propagation.asking import Asked, asked_of
from edit.propagation.circuit import EditCircuit
from edit.propagation.sides import Changed, Sides, sides_of
from edit.requests.probes import Probe, Probed, as_probed, probes_for
from edit.requests.requests import EditRequest
from locate.circuits.circuit import Circuit, How
from locate.circuits.evaluating import Measured, evaluate
from locate.circuits.finding import find_circuit
from locate.circuits.gathering import Gathered
from locate.circuits.pruning import prune_edges
from locate.circuits.selecting import Edges, Feeds, Marked, feeding, growth, on_a_path
from locate.circuits.written import differences, tellable, written_hooks
from locate.contrast.contrast import Contrast
from locate.errors import LocateError, suggest
from locate.names import DEFAULT_BUDGET
from locate.sites.graph import Graph

AMONG = ("all", "ways", "grown")
# The least size that is tried at first; how many are tried below the first that carries enough, from a quarter of it
# on, and then at a time between two; how near, as a share, the two are in the end.
_SMALLEST, _AROUND, _BETWEEN, _NEAR = 8, 9, 5, 0.01
# Of what may be lost in all, the shares that are tried as what one edge may, when edges are taken away one by one.
_LOSSES = (0.3, 0.1, 0.03, 0.01)


@torch.inference_mode(False)
def edit_circuit(
    model: TransformerBridge,
    change: Changed,
    probes: Probed,
    *,
    share: float = 0.85,
    method: str = "eap-ig",
    steps: int = 5,
    how: How | str = "greedy",
    random: int = 10,
    seed: int = 0,
    prune: bool = False,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> EditCircuit:
    """Find the edges by which an edit reaches the answer: as few as carry a share of its effect.

    The effect is what the edited model's logit difference o* − o is above the base model's, in the mean over probes.
    Every edge is scored by the gradient at points between the weights of the two, the best are taken, and those of them
    that lie on no way from what was edited to the logits are left out: they bring nothing. What is left is run: every
    other edge brings what its writer writes in the base model. Sizes are tried one twice as large as the other, then
    several below the first that carries enough, then those between that and the next smaller one, down to a hundredth
    of it. As more edges may well carry less, one that was not tried may be smaller.

    Args:
        model: a raw-mode bridge, with the change applied or not; it is left as it came.
        change: the edit; or another model of this one's build, such as a fine-tune of it; or ``Sides``.
        probes: what to ask; of a request, its own prompt.
        share: of the effect, to be carried.
        method: to score edges by; see ``locate.find_circuit``.
        steps: of integration.
        how: the best edges are chosen; see ``locate.Circuit.top``.
        random: how many sets of as many edges to draw as a control: among all edges, among those on a way from what was
            edited to the logits, and grown from the logits.
        seed: of these.
        prune: whether to take edges away one by one besides, as long as the share is carried (``locate.prune_edges``):
            minutes.
        budget: the most tokens in one pass.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: no probes, or one whose answers no token tells apart, or that the two models spell otherwise.
        LocateError: a share that is not above 0 and at most 1, an unknown method or way to choose, or the edit does
            nothing to these probes.
        UpdateError: the update does not fit the model, is not one of its weights, or changes nothing.
        ModelError: edges of this architecture cannot be told apart, or the edit changes by what the logits are read.

    >>> found = edit.edit_circuit(model, update, request, random=2, progress=False)
    >>> found.edited, found.share >= 0.85
    (('m4',), True)
    """
    _check(share, how, random)
    sides, graph = sides_of(model, change), tellable(model)
    asked = asked_of(sides, _own(probes))
    contrasts = [one.contrast(sides, keep=written_hooks(model), budget=budget) for one in asked]
    with sides.after.entered(), tqdm(desc="circuit of the edit", unit="run", disable=not progress, delay=1) as bar:
        gathered = Gathered(model, contrasts, budget=budget)
        scored = find_circuit(model, contrasts, method=method, steps=steps, budget=budget, progress=False)
        trial = _Trial.of(gathered, graph, scored, sides, how, bar)
        chosen = trial.smallest(share)
        if prune:
            chosen = trial.pruned(chosen, share, budget)
        drawn = trial.drawn(int(chosen.sum()), random, seed)
        found = trial.run([chosen, *drawn])
    return _result(trial, scored, asked, found, chosen, sides, random=random, info={
        "share": share, "how": how, "seed": seed, "pruned": prune, "edit": sides.described["method"],
        "layers": list(sides.layers),
    })  # fmt: skip


@dataclass(kw_only=True, eq=False)
class _Trial:
    """Sets of edges that are run on the probes.

    Attributes:
        fed: which readers feed which writers.
        source: the writers that have other weights.
        differs: those that write anything else in the edited model.
        order: edges, the best first.
        tried: by size, the values of those that were run.
    """

    gathered: Gathered
    graph: Graph
    scored: Circuit
    fed: Feeds
    source: Marked
    differs: Marked
    order: list[tuple[int, int]]
    bar: Any
    tried: dict[int, Float[np.ndarray, "probe"]] = field(default_factory=dict)

    @classmethod
    def of(cls, gathered: Gathered, graph: Graph, scored: Circuit, sides: Sides, how: str, bar: Any) -> "_Trial":
        contrasts, fed = list(gathered.contrasts()), feeding(graph.writers, graph.readers)
        differs = _differing(contrasts)
        allowed = graph.edges() & differs[:, None]
        values = np.where(allowed, np.abs(scored.scores.values), -np.inf)
        if how == "greedy":
            order = list(growth(values, allowed, fed))
        else:
            places = np.argsort(-values, axis=None, kind="stable")[: allowed.sum()]
            order = [(int(at), int(to)) for at, to in zip(*np.unravel_index(places, values.shape), strict=True)]
        source = differs & _edited(sides, graph)
        return cls(
            gathered=gathered, graph=graph, scored=scored, fed=fed, source=source, differs=differs, order=order, bar=bar
        )

    def first(self, n: int) -> Edges:
        """Of the ``n`` best edges, those on a way from what was edited."""
        chosen = np.zeros_like(self.graph.edges())
        chosen[tuple(np.array(self.order[:n]).T)] = True
        return on_a_path(chosen, self.fed, self.source)

    def run(self, kept: Sequence[Edges]) -> Measured:
        """What these answer."""
        return evaluate(self.gathered, self.graph, np.stack(kept), progress=self.bar.update)

    def carried(self, kept: Sequence[Edges]) -> list[float]:
        """What share of the effect these carry."""
        measured = self.run(kept)
        for one, values in zip(kept, measured.values, strict=True):
            self.tried[int(one.sum())] = values
        return measured.faithfulness().tolist()

    def smallest(self, share: float) -> Edges:
        """The fewest of the best edges that carry a share, as far as sizes were tried: more may well carry less."""
        known: dict[int, float] = {0: 0.0}

        def attempt(low: int | float, high: int, count: int) -> int:
            """The least size so far that carries enough, with so many more between two tried."""
            sizes = sorted({round(size) for size in np.linspace(low, high, count + 2)[1:-1]} - known.keys())
            known.update(zip(sizes, self.carried([self.first(size) for size in sizes]) if sizes else [], strict=True))
            return min(size for size, carried in known.items() if carried >= share)

        sizes = [len(self.order)]
        while sizes[-1] > _SMALLEST:
            sizes.append(sizes[-1] // 2)
        known.update(zip(sizes, self.carried([self.first(size) for size in sizes]), strict=True))
        least = min(size for size, carried in known.items() if carried >= share)
        least = attempt(least / 4, least, _AROUND)
        while least - (low := max(size for size in known if size < least)) > max(1, _NEAR * least):
            least = attempt(low, least, _BETWEEN)
        return self.first(least)

    def pruned(self, chosen: Edges, share: float, budget: int) -> Edges:
        """Fewer edges, where taking them away one by one leaves some that still carry the share.

        It begins with more edges than are needed, so that there is something to lose.
        """
        more = self.smallest((1 + share) / 2)
        measured = self.run([more])
        slack = abs(float(measured.whole.mean() - measured.empty.mean())) * max(1 - share, _NEAR)
        whole = replace(self.scored, kept=self.scored.kept.copy(data=more))
        for loss in _LOSSES:
            left = prune_edges(
                self.gathered.model, whole, list(self.gathered.contrasts()), threshold=loss * slack, budget=budget,
                progress=False,
            ).kept.values  # fmt: skip
            kept = on_a_path(left, self.fed, self.source)
            if kept.any() and self.run([kept]).faithfulness()[0] >= share:
                return min(kept, chosen, key=np.sum)
        return chosen

    def drawn(self, size: int, samples: int, seed: int) -> list[Bool[np.ndarray, "writer reader"]]:
        """As many edges at random: ``samples`` among all, then on ways, then grown."""
        generator, edges = np.random.default_rng(seed), self.graph.edges()
        ways = on_a_path(edges, self.fed, self.source)
        found = []
        for allowed in (edges, ways):
            places = np.argwhere(allowed)
            for _ in range(samples):
                one = np.zeros_like(edges)
                one[tuple(generator.choice(places, size, replace=False).T)] = True
                found.append(one)
        for _ in range(samples):
            one = np.zeros_like(edges)
            order = growth(generator.random(edges.shape), ways, self.fed)
            for edge, _ in zip(order, range(size), strict=False):
                one[edge] = True
            found.append(one)
        return found


def _result(
    trial: _Trial,
    scored: Circuit,
    asked: Sequence[Asked],
    found: Measured,
    chosen: Edges,
    sides: Sides,
    *,
    random: int,
    info: dict[str, Any],
) -> EditCircuit:
    sizes = sorted(trial.tried)
    data: dict[str, Any] = {
        "scores": scored.scores, "kept": scored.kept.copy(data=chosen), "differs": ("writer", trial.differs),
        "base": ("probe", found.empty), "edited": ("probe", found.whole), "circuit": ("probe", found.values[0]),
        "values": (("size", "probe"), np.stack([trial.tried[size] for size in sizes])),
    }  # fmt: skip
    coords: dict[str, Any] = {"size": sizes, "probe": range(len(asked))}
    if random:
        drawn = found.values[1:].reshape(len(AMONG), random, -1)
        data["random"], coords["among"] = (("among", "sample", "probe"), drawn), list(AMONG)
    known = {name: scored.info[name] for name in ("model", "method", "metric", "metric_label", "model_print")}
    names = [one.name for one, own in zip(trial.graph.writers, trial.source, strict=True) if own]
    return EditCircuit(
        data=xr.Dataset(data, coords=coords), probes=tuple(one.probe for one in asked), writers=scored.writers,
        readers=scored.readers, edited=tuple(names), info={**known, **info},
    )  # fmt: skip


def _differing(contrasts: Sequence[Contrast]) -> Marked:
    """Which writers write anything else in the edited model, on any of the probes."""
    every = [differences(one, torch.arange(len(one.rows))).abs().amax((0, 1, 3)) > 0 for one in contrasts]
    return torch.stack(every).any(0).cpu().numpy()


def _edited(sides: Sides, graph: Graph) -> Marked:
    """Which writers have other weights, or may have: what a block has beside attention and MLP counts for both."""
    changed = {id(one) for one in sides.after.differing(sides.before)}
    found = np.zeros(len(graph.writers), dtype=bool)
    for place, one in enumerate(graph.writers):
        if one.order == 0:  # whatever brings what enters the first block
            found[place] = True
            continue
        block: Any = sides.model.blocks[one.layer]
        other = getattr(block, "attn" if one.head is None else "mlp", None)
        apart = set() if other is None else {id(parameter) for parameter in other.parameters()}
        found[place] = any(id(parameter) in changed - apart for parameter in block.parameters())
    return found


def _own(probes: Probed) -> Sequence[Probe]:
    probes = as_probed(probes)
    return [one for one in probes_for(probes) if one.role == "edit"] if isinstance(probes, EditRequest) else probes


def _check(share: float, how: str, random: int) -> None:
    if not 0 < share <= 1:
        raise LocateError(f"share: must be above 0 and at most 1, found {share}.")
    if random < 0:
        raise LocateError(f"random: give 0 or more sets of edges, found {random}.")
    if how not in ("greedy", "threshold"):
        raise LocateError(f"There is no way {how!r} to choose edges. {suggest(how, ('greedy', 'threshold'))}")
