"""Scores of edges, for all of them from a few backward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from locate.circuits.cutting import cut_edges
from locate.circuits.evaluating import by_pair
from locate.circuits.points import Path, Point, Points
from locate.circuits.written import differences, groups
from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine.gradients import Tape, backward_passes
from locate.engine.rules import GRADIENT, RELP, Rules
from locate.errors import LocateError, suggest
from locate.sites.components import Component
from locate.sites.graph import Graph
from locate.sites.inputs import attention_input, mlp_input, projection
from locate.sites.table import hook_name


@dataclass(frozen=True, kw_only=True)
class EdgeMethod:
    """A way to score edges: (a_u(x′) − a_u(x)) · ∂m/∂in_v, with a gradient of its own.

    Attributes:
        path: where gradients are taken: at the target's states, at both ends, on the way of what enters the first block
            (or of the weights, where these differ), on the way of each component's own output; or edges are cut.
        rules: how they flow back.
    """

    path: Path
    rules: Rules = field(default_factory=Rules)


METHODS: dict[str, EdgeMethod] = {
    "eap": EdgeMethod(path="target"),
    "eap-relp": EdgeMethod(path="target", rules=RELP),
    "eap-ig-inputs": EdgeMethod(path="inputs", rules=GRADIENT),
    "eap-relp-ig": EdgeMethod(path="inputs", rules=RELP),
    "eap-ig-activations": EdgeMethod(path="activations"),
    "clean-corrupted": EdgeMethod(path="ends"),
    "exact": EdgeMethod(path="cut"),
}
_OTHER_NAMES = {"eap-ig": "eap-ig-inputs"}


def edge_method(name: str) -> EdgeMethod:
    """The method of this name.

    Raises:
        LocateError: there is none; the nearest names are suggested.

    >>> edge_method("eap-ig").path
    'inputs'
    """
    known = _OTHER_NAMES.get(name, name)
    if known not in METHODS:
        raise LocateError(f"There is no method {name!r} to score edges. {suggest(name, [*METHODS, *_OTHER_NAMES])}")
    return METHODS[known]


@dataclass(kw_only=True, eq=False)
class Sums:
    """Sums over pairs of prompts, of scores and of their squares.

    Attributes:
        n: pairs.
        total: of scores.
        squares: of their squares.
        by_position: of scores by position, where these are told apart.
    """

    n: int = 0
    total: Float[Tensor, "writer reader"]
    squares: Float[Tensor, "writer reader"]
    by_position: Float[Tensor, "position writer reader"] | None = None

    def add(self, scores: Float[Tensor, "writer reader"]) -> None:
        """Those of a pair."""
        self.total += scores
        self.squares += scores**2
        self.n += 1

    @property
    def mean(self) -> Float[Tensor, "writer reader"]:
        """The mean score."""
        return self.total / self.n

    @property
    def error(self) -> Float[Tensor, "writer reader"]:
        """Its standard error; NaN of a single pair."""
        if self.n < 2:
            return torch.full_like(self.total, float("nan"))
        variance = (self.squares - self.total**2 / self.n).clamp_min(0) / (self.n - 1)
        return (variance / self.n).sqrt()


def add_scores(
    sums: Sums,
    contrast: Contrast,
    graph: Graph,
    metric: Metric,
    how: EdgeMethod,
    *,
    steps: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Add the scores of a contrast's questions, or of its rows where there is a single question.

    Both runs must have kept ``written_hooks``.

    Raises:
        LocateError: the metric has no gradient, or no one path leads from run to run.
        ModelError: the architecture has inputs that edges cannot be told apart at, or that no path leads along.
    """
    if how.path == "cut":
        _add_cuts(sums, contrast, graph, metric, progress)
        return
    points = Points(contrast=contrast, graph=graph, path=how.path, steps=steps)
    for group in groups(contrast, graph):
        rows = torch.cat(group)
        scorer = _Scorer(points=points, metric=metric, how=how, rows=rows)
        scores = scorer.scores(by_position=sums.by_position is not None)
        for own in torch.arange(len(rows)).split([len(one) for one in group]):
            mean = scores[own].mean(0)  # position writer reader
            if sums.by_position is not None:
                sums.by_position[contrast.first :] += mean
            sums.add(mean.sum(0))
        progress(len(rows))


def _add_cuts(
    sums: Sums, contrast: Contrast, graph: Graph, metric: Metric, progress: Callable[[int], Any]
) -> None:  # fmt: skip
    """What cutting each edge by itself does, summed over positions as it is."""
    edges = torch.from_numpy(graph.edges()).nonzero()
    values = cut_edges(contrast, graph, [(at, to) for at, to in edges.tolist()], [metric], progress=progress)
    moved = values[..., 0] - contrast.ends(metric).target[:, 0].float()
    for own in torch.from_numpy(by_pair(contrast, moved)).float().T:
        scores = torch.zeros_like(sums.total)
        scores[tuple(edges.T)] = own
        sums.add(scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    points: Points
    metric: Metric
    how: EdgeMethod
    rows: Int[Tensor, "row"]

    @property
    def contrast(self) -> Contrast:
        return self.points.contrast

    @property
    def graph(self) -> Graph:
        return self.points.graph

    def scores(self, *, by_position: bool) -> Float[Tensor, "row position writer reader"]:
        """Of each row; without positions these are summed to one."""
        moved = differences(self.contrast, self.rows)
        n, length = moved.shape[:2]
        shape = n, length if by_position else 1, len(self.graph.writers), len(self.graph.readers)
        found = torch.zeros(shape, dtype=torch.float32)
        for point in self.points.of(self.rows):
            for columns, gradient in self._stream_gradients(point):
                before = self.graph.readers[columns[0]].order
                sent = [i for i in point.senders if self.graph.writers[i].order < before]
                terms = "row position writer reader" if by_position else "row writer reader"
                own = point.share * einsum(
                    moved[:, :, sent], gradient.to(moved),
                    f"row position writer d_model, row position reader d_model -> {terms}",
                )  # fmt: skip
                own = own.cpu() if by_position else own.cpu()[:, None]
                found[:, :, torch.tensor(sent)[:, None], torch.tensor(columns)] += own.to(found)
        return found

    def _stream_gradients(self, point: Point) -> list[tuple[list[int], Float[Tensor, "row position reader d_model"]]]:
        """The mean gradient with respect to the stream as each reader reads it, for readers after some writers.

        Readers that read at one time, one after the other in the graph, come together.
        """
        run, first, each = point.run, self.contrast.first, point.rows_each
        after = min(self.graph.writers[i].order for i in point.senders)
        readers = [one for one in self.graph.readers if one.order > after]
        together = _at_one_time(self.graph, after)
        seen = sorted({name for columns in together for name in self._states_of(columns)})
        names = list(dict.fromkeys(self._gradient_hook(one) for one in readers))
        totals: list[Tensor | None] = [None] * len(together)

        def use(tape: Tape) -> None:
            own = torch.arange(len(point.branch))[tape.rows] // each
            gradients = tape.gradients()
            for index, columns in enumerate(together):
                found = self._pulled_back(columns, tape, gradients) / each
                total = totals[index]
                if total is None:
                    total = totals[index] = found.new_zeros(len(self.rows), *found.shape[1:])
                total.index_add_(0, own.to(found.device), found)

        backward_passes(
            run, first, point.branch, names, self.contrast.measure(self.metric), use, seen=seen, rules=self.how.rules
        )
        return [(columns, total) for columns, total in zip(together, totals, strict=True) if total is not None]

    def _gradient_hook(self, reader: Component) -> str:
        # What enters the final norm is read where the last block leaves it: the norm is given what is read alone.
        last = self.graph.anatomy.n_layers - 1
        return hook_name("resid_post", last) if reader.layer > last else reader.hook

    def _states_of(self, columns: Sequence[int]) -> list[str]:
        """The hook points that say what is read."""
        one = self.graph.readers[columns[0]]
        if one.layer == self.graph.anatomy.n_layers:
            return []
        alone = one.head is not None or mlp_input(self.contrast.target.model, one.layer).parallel
        return [hook_name(kind, one.layer) for kind in (("resid_pre",) if alone else ("resid_pre", "attn_out"))]

    def _pulled_back(
        self, columns: Sequence[int], tape: Tape, gradients: dict[str, Tensor]
    ) -> Float[Tensor, "row position reader d_model"]:
        readers, model = [self.graph.readers[i] for i in columns], self.contrast.target.model
        one = readers[0]
        if one.layer == self.graph.anatomy.n_layers:
            return rearrange(gradients[self._gradient_hook(one)], "row position d_model -> row position 1 d_model")
        stream = sum(tape.values[name] for name in self._states_of(columns))
        assert isinstance(stream, Tensor)
        parts = []
        for hook in dict.fromkeys(reader.hook for reader in readers):
            kind = next(reader.input for reader in readers if reader.hook == hook)
            gradient = gradients[hook]
            if kind is None:
                parts.append(rearrange(gradient, "row position d_model -> row position 1 d_model"))
            else:
                weight = projection(model, one.layer, kind).to(gradient)
                parts.append(
                    einsum(
                        gradient, weight, "row position unit d_head, unit d_head d_model -> row position unit d_model"
                    )
                )
        if one.head is None:
            return mlp_input(model, one.layer).pulled_back(stream, parts[0])
        return attention_input(model, one.layer).pulled_back(stream, torch.cat(parts, dim=2))


def _at_one_time(graph: Graph, after: int) -> list[list[int]]:
    """Indices of readers after some writers, in groups of one layer that read at one time and through one norm."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, one in enumerate(graph.readers):
        if one.order > after:
            groups.setdefault((one.layer, one.head is None), []).append(index)
    return list(groups.values())
