"""Running circuits: every edge outside of a circuit brings what its writer writes in another run.

A reader's input is the stream as it is by then, less what its cut edges would bring and with what they bring in the
other run; where they bring something else, it is the sum of what every edge brings: the small part that is left of a
stream would be rounded as the whole of it. All readers of a layer have inputs of their own, which their norms and
projections make queries, keys, values and MLP inputs of; one pass runs any number of circuits side by side.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.circuits.written import groups, written
from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine import Branch, Measure, hook_points
from locate.engine.hooking import listen
from locate.engine.rows import rows_of
from locate.sites.contributions import attention_contributions
from locate.sites.graph import Graph
from locate.sites.inputs import attention_input, mlp_input, projection
from locate.sites.table import hook_name


@torch.no_grad()
def run_circuits(
    contrast: Contrast,
    graph: Graph,
    kept: Bool[Tensor, "circuit writer reader"],
    metrics: Sequence[Metric],
    *,
    instead: Float[Tensor, "1 #position #writer #d_model"] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Float[Tensor, "circuit row metric"]:
    """What metrics are where only the edges of a circuit bring what their writers write in the contrast's target.

    Both runs must have kept ``written_hooks``.

    Args:
        contrast: the runs: clean and corrupted, in that order.
        graph: of the model.
        kept: the edges of each circuit.
        metrics: what is measured.
        instead: what the other edges bring at every position, the same in all rows; by default what their writers
            write in the contrast's source.
        progress: told how many rows are done.

    Raises:
        ModelError: the architecture has inputs that edges cannot be told apart at.
    """
    if instead is not None:  # what edges bring changes before the first difference too
        contrast = replace(contrast, first=0)
    measure = contrast.measure(metrics)
    results = torch.zeros(len(kept), len(contrast.rows), len(metrics), dtype=torch.float32)
    for group in groups(contrast, graph):
        rows = torch.cat(group)
        theirs = written(contrast.source, contrast.rows.source[rows], contrast.first)
        if instead is not None:
            theirs = instead.to(theirs).expand_as(theirs)
        together = max(1, contrast.target.rows_at_a_time(contrast.first) // len(rows))
        for some in torch.arange(len(kept)).split(together):
            passed = _Pass(
                contrast=contrast, graph=graph, rows=rows, theirs=theirs, kept=kept[some], summed=instead is not None
            )
            results[some[:, None], rows] = passed.run(measure)
            progress(len(rows) * len(some))
    return results


def mean_written(contrasts: Iterable[Contrast], graph: Graph) -> Float[Tensor, "1 position writer d_model"]:
    """What writers write in the contrasts' sources at every position, in the mean over all rows."""
    total, n = None, 0
    for contrast in contrasts:
        contrast = replace(contrast, first=0)
        for group in groups(contrast, graph):
            rows = torch.cat(group)
            own = reduce(written(contrast.source, contrast.rows.source[rows], 0).float(), "row ... -> 1 ...", "sum")
            total, n = own if total is None else total + own, n + len(rows)
    assert total is not None
    return total / n


@dataclass(kw_only=True, eq=False)
class _Pass:
    """Some circuits on some rows, circuit by circuit.

    Attributes:
        theirs: what each writer writes in the other run.
        kept: the edges of each circuit.
        summed: whether readers read the sum of what edges bring, in place of the stream with the cut ones exchanged.
    """

    contrast: Contrast
    graph: Graph
    rows: Int[Tensor, "row"]
    theirs: Float[Tensor, "row position writer d_model"]
    kept: Bool[Tensor, "circuit writer reader"]
    summed: bool
    # What each writer would write in the other run, less what it writes here, as far as it has written: writers first,
    # so that what all cut edges of a reader bring is one product of matrices.
    _missing: Float[Tensor, "circuit writer row position d_model"] = field(init=False)
    _seen: dict[str, Tensor] = field(default_factory=dict)
    # What attention adds in each layer without any of its heads.
    _biases: dict[int, Tensor] = field(default_factory=dict)

    def run(self, measure: Measure) -> Float[Tensor, "circuit row metric"]:
        contrast, n = self.contrast, len(self.kept)
        target, first = contrast.target, contrast.first
        own = contrast.rows.target[self.rows]
        states = repeat(rows_of(target.residuals[0], own)[:, first:], "row ... -> (circuit row) ...", circuit=n)
        branch = Branch(layer=0, rows=repeat(own, "row -> (circuit row)", circuit=n), states=states)
        theirs = rearrange(self.theirs, "row position writer d_model -> writer row position d_model")
        self._missing = theirs.new_zeros(n, *theirs.shape)
        with target.weights.entered(), self._listening(target.model, theirs):
            found = target.resume(first, [branch], measure=measure, heard=True)
        return rearrange(found.float().cpu(), "(circuit row) metric -> circuit row metric", circuit=n)

    @contextmanager
    def _listening(self, model: TransformerBridge, theirs: Tensor) -> Iterator[None]:
        hooks = [*self._writers(model, theirs), *self._readers(model)]
        with ExitStack() as stack:
            for name, function in hooks:
                stack.callback(listen(hook_points(model, [name])[name], function).remove)
            yield

    def _late(self, value: Tensor) -> Tensor:
        """A value from the first difference on: some layers, and runs that cannot be resumed, show the whole of it."""
        length = self.contrast.target.tokens.shape[1] - self.contrast.first
        return value[:, value.shape[1] - length :]

    def _put(self, value: Tensor, late: Tensor) -> Tensor:
        before = value.shape[1] - late.shape[1]
        return torch.cat([value[:, :before], late], dim=1) if before else late

    def _writers(
        self, model: TransformerBridge, theirs: Tensor
    ) -> Iterator[tuple[str, Callable[[Tensor], Tensor | None]]]:
        index = {one.name: i for i, one in enumerate(self.graph.writers)}

        def wrote(start: int, values: Tensor) -> None:
            each = rearrange(
                values, "(circuit row) position writer d_model -> circuit writer row position d_model",
                circuit=len(self.kept),
            )  # fmt: skip
            stop = start + each.shape[1]
            self._missing[:, start:stop] = theirs[start:stop] - each

        def entering(layer: int) -> Callable[[Tensor], None]:
            def hook(value: Tensor) -> None:
                self._seen["stream"] = self._late(value)
                self._seen["before mlp"] = self._seen["stream"]
                if layer == 0:
                    wrote(0, rearrange(self._seen["stream"], "row position d_model -> row position 1 d_model"))

            return hook

        def attended(layer: int) -> Callable[[Tensor], None]:
            def hook(value: Tensor) -> None:
                z = self._seen.pop("z")
                heads, self._biases[layer] = attention_contributions(model, layer, z, self._late(value))
                wrote(index[f"a{layer}.h0"], heads)

            return hook

        def look(name: str) -> Callable[[Tensor], None]:
            return lambda value: self._seen.__setitem__(name, self._late(value))

        def added(value: Tensor) -> None:
            self._seen["before mlp"] = self._seen["stream"] + self._late(value)

        def mlp(layer: int) -> Callable[[Tensor], None]:
            def hook(value: Tensor) -> None:
                late = rearrange(self._late(value), "row position d_model -> row position 1 d_model")
                wrote(index[f"m{layer}"], late)

            return hook

        for layer, own in enumerate(self.graph.anatomy.layers):
            yield hook_name("resid_pre", layer), entering(layer)
            if own.n_heads:
                yield hook_name("attn_head_z", layer), look("z")
                yield hook_name("attn_proj_out", layer), attended(layer)
                if not own.parallel:
                    yield hook_name("attn_out", layer), added
            if own.has_mlp:
                yield hook_name("mlp_out", layer), mlp(layer)

    def _readers(self, model: TransformerBridge) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        for layer, own in enumerate(self.graph.anatomy.layers):
            if own.n_heads:
                columns = [i for i, one in enumerate(self.graph.readers) if one.layer == layer and one.input]
                for name in "qkv":
                    yield hook_name(f"attn_head_{name}", layer), self._heads(model, layer, name, columns)
            if own.has_mlp:
                columns = [i for i, one in enumerate(self.graph.readers) if one.name == f"m{layer}"]
                yield hook_name("mlp_in", layer), self._mlp(model, layer, columns)
        yield hook_name("resid_post", self.graph.anatomy.n_layers - 1), self._final([len(self.graph.readers) - 1])

    def _inputs(self, columns: list[int], stream: Tensor) -> Float[Tensor, "reader circuit_row position d_model"]:
        """The stream as these readers read it, which all read at one time."""
        order = self.graph.readers[columns[0]].order
        before = sum(one.order < order for one in self.graph.writers)
        kept = rearrange(self.kept[:, :before, columns], "circuit writer reader -> circuit reader writer")
        weights = -kept.to(stream) if self.summed else (~kept).to(stream)
        brought = weights @ self._missing[:, :before].flatten(2)
        brought = rearrange(
            brought, "circuit reader (row position d_model) -> reader (circuit row) position d_model",
            row=len(self.rows), d_model=stream.shape[-1],
        )  # fmt: skip
        return (self._others(order, before) if self.summed else stream) + brought

    def _others(self, order: int, before: int) -> Float[Tensor, "circuit_row position d_model"]:
        """What is read where every edge is cut: what writers bring then, and what is no writer's."""
        found = reduce(self.theirs[:, :, :before], "row position writer d_model -> row position d_model", "sum")
        found = repeat(found, "row ... -> (circuit row) ...", circuit=len(self.kept))
        attended = {one.layer: one.order for one in self.graph.writers if one.head is not None}
        return found + sum(bias for layer, bias in self._biases.items() if attended[layer] < order)

    def _final(self, columns: list[int]) -> Callable[[Tensor], Tensor]:
        return lambda value: self._put(value, self._inputs(columns, self._late(value))[0])

    def _mlp(self, model: TransformerBridge, layer: int, columns: list[int]) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            read, stream = mlp_input(model, layer), self._seen["before mlp"]
            given = read(self._inputs(columns, stream)[0])
            return self._put(value, given if self.summed else self._late(value) + given - read(stream))

        return hook

    def _heads(self, model: TransformerBridge, layer: int, name: str, columns: list[int]) -> Callable[[Tensor], Tensor]:
        kinds = [self.graph.readers[i].input for i in columns]
        mine = torch.tensor([kind == name for kind in kinds])

        def hook(value: Tensor) -> Tensor:
            moved = self._moved(model, layer, columns)[mine.to(value.device)]
            shift = einsum(
                moved, projection(model, layer, name).to(moved),
                "unit row position d_model, unit d_head d_model -> row position unit d_head",
            )  # fmt: skip
            return self._put(value, self._late(value) + shift)

        return hook

    def _moved(
        self, model: TransformerBridge, layer: int, columns: list[int]
    ) -> Float[Tensor, "reader circuit_row position d_model"]:
        """By how much what each query, key and value of a layer is made of differs from what the stream would give."""
        if (known := self._seen.get(f"moved {layer}")) is not None:
            return known
        self._seen.pop(f"moved {layer - 1}", None)
        read, stream = attention_input(model, layer), self._seen["stream"]
        # Beside the rows: norms take a state for each position, and no further axis.
        inputs = rearrange(
            self._inputs(columns, stream), "reader row position d_model -> (reader row) position d_model"
        )
        given = rearrange(read(inputs), "(reader row) position d_model -> reader row position d_model", row=len(stream))
        found = self._seen[f"moved {layer}"] = given - read(stream)
        return found
