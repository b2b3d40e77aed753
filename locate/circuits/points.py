"""At which states between two runs gradients are taken: from inputs to inputs, or from weights to weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Int
from torch import Tensor

from locate.contrast.contrast import Contrast
from locate.engine import Branch, FrozenRun, Pin, refreeze
from locate.engine.rows import rows_of
from locate.errors import LocateError, ModelError
from locate.sites.graph import Graph

# At the target's, at both ends, on the way of what enters the first block, or on that of each component's own output.
# Or none is taken, and edges are cut.
Path = Literal["target", "ends", "inputs", "activations", "cut"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """Where a gradient is taken.

    Attributes:
        run: that is resumed.
        branch: what it is resumed with.
        rows_each: how many of the branch's rows are of one of the contrast's: the gradient is their mean.
        share: of this point among those that are averaged.
        senders: the writers whose edges it is for.
    """

    run: FrozenRun
    branch: Branch
    rows_each: int = 1
    share: float = 1.0
    senders: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """The points of a path between the runs of a contrast.

    Raises:
        LocateError: the runs read other tokens and compute with other weights, and the path is of one of the two.
        ModelError: no straight path leads between the inputs of this architecture.
    """

    contrast: Contrast
    graph: Graph
    path: Path
    steps: int

    def __post_init__(self) -> None:
        target, source, rows = self.contrast.target, self.contrast.source, self.contrast.rows
        if self.path not in ("inputs", "ends"):
            return
        if not self.contrast.by_weights:
            if target.token_places:
                raise ModelError(
                    "Tokens of this model bring more than the residual stream, so that there is no straight path "
                    "between two of them to go along. Use another method."
                )
        elif target.hooks != source.hooks or not torch.equal(target.tokens[rows.target], source.tokens[rows.source]):
            raise LocateError(
                "The two runs read other tokens, and compute with other weights: there is no one path between them to "
                "integrate along. Give runs that differ in one of the two, or take the method eap."
            )

    def of(self, rows: Int[Tensor, "row"]) -> Iterator[Point]:
        """Those for some of the contrast's rows."""
        everyone = list(range(len(self.graph.writers)))
        if self.contrast.by_weights and self.path != "activations":
            own = self.contrast.rows.target[rows]
            senders = [i for i in everyone if self.graph.writers[i].layer >= self._first_layer]
            for run in self._runs:
                states = rows_of(run.residuals[self._first_layer], own)[:, self.contrast.first :]
                branch = Branch(layer=self._first_layer, rows=own, states=states)
                yield Point(run=run, branch=branch, share=1 / len(self._runs), senders=senders)
            return
        target, source = self.contrast.target, self.contrast.source
        shares = self._shares
        own = repeat(self.contrast.rows.target[rows], "row -> (row share)", share=len(shares))
        whole = Branch(layer=0, rows=own, states=self._between(rows, target.residuals[0], source.residuals[0]))
        if self.path != "activations":
            yield Point(run=target, branch=whole, rows_each=len(shares), senders=everyone)
            return
        yield Point(run=target, branch=whole, rows_each=len(shares), senders=[0])
        columns = tuple(range(target.tokens.shape[1] - self.contrast.first))
        for hook in dict.fromkeys(one.hook for one in self.graph.writers[1:]):
            senders = [i for i in everyone[1:] if self.graph.writers[i].hook == hook]
            layer = self.graph.writers[senders[0]].layer
            pin = Pin(values=self._between(rows, target.kept[hook], source.kept[hook]), columns=columns)
            states = rows_of(target.residuals[layer], own)[:, self.contrast.first :]
            branch = Branch(layer=layer, rows=own, states=states, interventions={hook: pin})
            yield Point(run=target, branch=branch, rows_each=len(shares), senders=senders)

    @cached_property
    def _shares(self) -> list[float]:
        """How far from the source to the target."""
        if self.path in ("target", "ends"):
            return {"target": [1.0], "ends": [0.0, 1.0]}[self.path]
        return [step / self.steps for step in range(1, self.steps + 1)]

    @cached_property
    def _runs(self) -> list[FrozenRun]:
        """The same prompts under the weights on the way."""
        target, source = self.contrast.target, self.contrast.source
        found = []
        for share in self._shares:
            if share == 1:
                found.append(target)
                continue
            with source.weights.mixed(target.weights, share).entered():
                found.append(refreeze(replace(target, kept={})))
        return found

    @cached_property
    def _first_layer(self) -> int:
        """The first whose block gives other states in the two runs; what is written below is the same in both."""
        target, source, rows = self.contrast.target, self.contrast.source, self.contrast.rows
        for layer, (own, theirs) in enumerate(zip(target.residuals, source.residuals, strict=True)):
            if own is not theirs and not torch.equal(rows_of(own, rows.target), rows_of(theirs, rows.source).to(own)):
                return max(0, layer - 1)
        return target.n_layers - 1

    def _between(self, rows: Int[Tensor, "row"], one: Tensor, other: Tensor) -> Tensor:
        """From the source's values to the target's, share by share of each row."""
        both = (one, self.contrast.rows.target[rows]), (other, self.contrast.rows.source[rows])
        has, wanted = (rows_of(values, at)[:, self.contrast.first :] for values, at in both)
        if self._shares == [1.0]:
            return has
        wanted = wanted.to(has)
        points = torch.tensor(self._shares, device=has.device, dtype=has.dtype)
        points = rearrange(points, f"share -> share {' '.join('1' * (has.ndim - 1))}")
        return rearrange(wanted[:, None] + points * (has - wanted)[:, None], "row share ... -> (row share) ...")
