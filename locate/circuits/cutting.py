"""Edges that are cut one at a time: everything after the reader of each is computed anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from locate.circuits.written import differences, groups
from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine import Added, Branch
from locate.engine.rows import in_parts, rows_of
from locate.model.anatomy import norm_after
from locate.sites.components import Component
from locate.sites.graph import Graph
from locate.sites.inputs import attention_input, mlp_input, projection
from locate.sites.table import hook_name

# Writer and reader, as the graph counts them.
Edge = tuple[int, int]


@torch.no_grad()
def cut_edges(
    contrast: Contrast,
    graph: Graph,
    edges: Sequence[Edge],
    metrics: Sequence[Metric],
    *,
    progress: Callable[[int], object] = lambda rows: None,
) -> Float[Tensor, "edge row metric"]:
    """What metrics are in the contrast's target where one edge brings what its writer writes in the source.

    As in ``run_circuits`` with all edges but that one, but only what its reader reaches is run: rows enter at the
    reader's layer, those of many layers in one growing batch. Both runs must have kept ``written_hooks``.

    Args:
        contrast: the runs: clean and corrupted, in that order.
        graph: of the model.
        edges: those to cut.
        metrics: what is measured.
        progress: told how many rows are done.

    Raises:
        ModelError: the architecture has inputs that edges cannot be told apart at.
    """
    target, measure = contrast.target, contrast.measure(metrics)
    results = torch.zeros(len(edges), len(contrast.rows), len(metrics), dtype=torch.float32)
    # As the model computes, so that each part begins at the layer of its first edge.
    order = sorted(range(len(edges)), key=lambda index: edges[index][1])
    for group in groups(contrast, graph):
        rows = torch.cat(group)
        with target.weights.entered():
            cutting = _Cutting(contrast=contrast, graph=graph, rows=rows, moved=differences(contrast, rows))
            for some in in_parts(order, target.rows_at_a_time(contrast.first) // len(rows)):
                branches = cutting.branches([edges[index] for index in some])
                found = target.resume(contrast.first, branches, measure=measure).float().cpu()
                at = torch.tensor(some)[:, None], rows.cpu()[None]
                results[at] = rearrange(found, "(edge row) metric -> edge row metric", edge=len(some))
                progress(len(rows) * len(some))
    return results


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cutting:
    """Some rows of a contrast, of which the target's weights are in force.

    Attributes:
        moved: what each writer adds in the source, less what it adds in the target.
    """

    contrast: Contrast
    graph: Graph
    rows: Int[Tensor, "row"]
    moved: Float[Tensor, "row position writer d_model"]

    def branches(self, edges: Sequence[Edge]) -> list[Branch]:
        """These edges cut, one after the other in all rows; they are in the order of their readers."""
        return [self._branch(list(own)) for _, own in groupby(edges, lambda edge: self.graph.readers[edge[1]].hook)]

    def _branch(self, edges: Sequence[Edge]) -> Branch:
        """Of edges whose readers share a hook point."""
        writers, readers = [writer for writer, _ in edges], [self.graph.readers[reader] for _, reader in edges]
        one, times = readers[0], "row ... -> (edge row) ..."
        own = self.contrast.rows.target[self.rows]
        states = repeat(self._late(self.contrast.target.residuals[one.layer]), times, edge=len(edges))
        moved = rearrange(self.moved[:, :, writers], "row position edge d_model -> (edge row) position d_model")
        rows = repeat(own, times, edge=len(edges))
        if one.layer == self.graph.anatomy.n_layers:
            return Branch(layer=one.layer, rows=rows, states=states + moved.to(states))
        model = self.contrast.target.model
        read = (mlp_input if one.head is None else attention_input)(model, one.layer)
        stream = self._stream(one)
        before = repeat(read(stream), times, edge=len(edges))
        change = read(repeat(stream, times, edge=len(edges)) + moved.to(stream)) - before
        units = None
        if one.input is not None:
            heads = torch.tensor([reader.head for reader in readers])
            weight = projection(model, one.layer, one.input).to(change)
            change = einsum(
                rearrange(change, "(edge row) ... -> edge row ...", edge=len(edges)), weight[heads.to(weight.device)],
                "edge row position d_model, edge d_head d_model -> edge row position d_head",
            )  # fmt: skip
            change = rearrange(change, "edge row ... -> (edge row) ...")
            units = repeat(heads, "edge -> (edge row)", row=len(self.rows))
        return Branch(
            layer=one.layer, rows=rows, states=states, interventions={one.hook: Added(values=change, units=units)}
        )

    def _stream(self, reader: Component) -> Float[Tensor, "row position d_model"]:
        """The stream as a component of the target reads it."""
        layer, own = reader.layer, self.graph.anatomy.layers[reader.layer]
        target = self.contrast.target
        entering = self._late(target.residuals[layer])
        if reader.head is not None or mlp_input(target.model, layer).parallel:
            return entering
        projected = self._late(target.kept[hook_name("attn_proj_out", layer)])
        norm = norm_after(target.model.blocks[layer], "attn")
        return entering + (projected if norm is None else norm(projected)).to(entering) * own.multiplier

    def _late(self, states: Float[Tensor, "_ _ d_model"]) -> Float[Tensor, "row position d_model"]:
        return rows_of(states, self.contrast.rows.target[self.rows])[:, self.contrast.first :]
