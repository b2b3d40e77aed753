"""First-order estimates of what patches would do, for all sites from a few backward passes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast
from locate.contrast.metrics import Metric
from locate.engine import Branch, Pin
from locate.engine.embedding import other_embeddings
from locate.engine.gradients import Tape, backward_passes
from locate.engine.rows import rows_of
from locate.engine.rules import GIM, GRADIENT, RELP, Rules
from locate.errors import LocateError, ModelError, suggest
from locate.patching.asking import Asked
from locate.patching.sites import PatchSite
from locate.sites.table import hook_name

# Queries and keys act through a softmax, which is exchanged exactly where a method asks for it.
_THROUGH_SOFTMAX = ("attn_head_q", "attn_head_k")
_PATTERN = "attn_head_pattern"


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A way to estimate effects.

    Attributes:
        rules: how gradients flow back.
        integrated: whether gradients are averaged on the straight path between what enters the first block in both
            runs.
        exact_attention: whether the change of the attention pattern is computed, and not estimated, where queries and
            keys are patched.
        dropping: whether effects are averaged in size over backward passes in each of which one layer is left out.
    """

    rules: Rules = field(default_factory=Rules)
    integrated: bool = False
    exact_attention: bool = False
    dropping: bool = False


# The first of these that an architecture has a meaning for is the default.
DEFAULT_METHODS = ("ig", "relp")
ESTIMATORS: dict[str, Estimator] = {
    "atp": Estimator(rules=GRADIENT),
    "atp*": Estimator(rules=GRADIENT, exact_attention=True, dropping=True),
    "relp": Estimator(rules=RELP),
    "relp-ig": Estimator(rules=RELP, integrated=True),
    "gim": Estimator(rules=GIM),
    "ig": Estimator(rules=GRADIENT, integrated=True),
}


def default_method(model: TransformerBridge) -> str:
    """The method that is taken where none is named: integrated, unless tokens bring more than the stream.

    >>> default_method(model)
    'ig'
    """
    integrated, plain = DEFAULT_METHODS
    return plain if other_embeddings(model) else integrated


def estimator(method: str, *, pattern: str = "gradient") -> Estimator:
    """The estimator of this name, and what relevance propagation does with attention patterns.

    Raises:
        LocateError: there is none (the nearest names are suggested), or it leaves patterns alone.

    >>> estimator("relp").rules.frozen_norms
    True
    """
    if method not in ESTIMATORS:
        raise LocateError(f"There is no method {method!r} of attribution. {suggest(method, ESTIMATORS)}")
    found = ESTIMATORS[method]
    if pattern == "gradient":
        return found
    if not found.rules.identity:
        raise LocateError(f"pattern: only relp has rules for attention patterns, {method} has none; leave it out.")
    return replace(found, rules=replace(found.rules, pattern=pattern))


def estimate(
    asked: Asked, metric: Metric, how: Estimator, *, steps: int = 5, progress: Callable[[int], Any] = lambda rows: None
) -> Float[Tensor, "layer place unit row"]:
    """(n′ − n) · ∂m/∂n for every site n, row by row: ``n`` is the state in the run that is patched, ``n′`` the one that
    it would get.

    Raises:
        LocateError: the metric has no gradient.
        ModelError: the method has no meaning in this architecture.
    """
    shape = len(asked.layers), len(asked.places), len(asked.units), len(asked.contrast.rows)
    found = _Estimate(asked, how, steps, torch.zeros(shape, dtype=torch.float32))
    found.fill(metric, progress)
    return found.result


@dataclass(frozen=True, eq=False)
class _Estimate:
    asked: Asked
    how: Estimator
    steps: int
    result: Float[Tensor, "layer place unit row"]
    _own: dict[int, Tensor] = field(default_factory=dict)

    @property
    def contrast(self) -> Contrast:
        return self.asked.contrast

    @property
    def site(self) -> PatchSite:
        return self.asked.site

    def fill(self, metric: Metric, progress: Callable[[int], Any]) -> None:
        contrast, first = self.contrast, self.contrast.first
        target, rows = contrast.target, contrast.rows
        steps = self.steps if self.how.integrated else 1
        names = [self._gradient_hook(layer) for layer in self.asked.layers]

        def use(tape: Tape) -> None:
            own = torch.arange(len(rows) * steps)[tape.rows] // steps
            every: list[int | None] = [*range(target.n_layers)] if self.how.dropping else [None]
            signed, sizes = 0.0, 0.0
            for dropped in every:
                effects = self._effects(tape, tape.gradients(dropped=dropped), own)
                signed, sizes = signed + effects, sizes + effects.abs()
            if self.how.dropping:
                signed = torch.sign(torch.as_tensor(signed)) * sizes / max(1, len(every) - 1)
            self.result.index_add_(-1, own, torch.as_tensor(signed) / steps)
            progress(len(own))

        branch = self._entering(steps)
        if self.how.integrated:
            self._keep_own()
        backward_passes(
            target, first, branch, names, contrast.measure(metric), use, rules=self.how.rules,
            droppable=self.how.dropping,
        )  # fmt: skip

    def _entering(self, steps: int) -> Branch:
        """The target's rows as they are, or at every step of the way to them from the source's."""
        contrast, first = self.contrast, self.contrast.first
        rows = contrast.rows
        own = rows_of(contrast.target.residuals[0], rows.target)[:, first:]
        if not self.how.integrated:
            return Branch(layer=0, rows=rows.target, states=own)
        if contrast.target.token_places:
            raise ModelError(
                "Tokens of this model bring more than the residual stream, so that there is no straight path between "
                "two of them to integrate along. Use another method."
            )
        other = rows_of(contrast.source.residuals[0], rows.source)[:, first:].to(own)
        shares = (torch.arange(1, steps + 1) / steps).to(own)
        path = other[:, None] + shares[:, None, None] * (own - other)[:, None]
        return Branch(
            layer=0, rows=repeat(rows.target, "row -> (row step)", step=steps),
            states=rearrange(path, "row step ... -> (row step) ..."),
        )  # fmt: skip

    def _keep_own(self) -> None:
        """The target's own states, which integration does not pass through."""
        target, rows = self.contrast.target, self.contrast.rows
        names = [name for layer in self.asked.layers for name in self.site.kept(layer)]
        if all(name in target.kept for name in names):
            for layer in self.asked.layers:
                self._own[layer] = self._late(rows_of(self.site.states(target, layer), rows.target))
            return
        if not target.resumable:
            self.contrast.check_kept([], names)
        states = rows_of(target.residuals[0], rows.target)[:, self.contrast.first :]
        found = target.record(self.contrast.first, Branch(layer=0, rows=rows.target, states=states), names)
        self._own.update(zip(self.asked.layers, found.values(), strict=True))

    @property
    def _exact(self) -> bool:
        return self.how.exact_attention and self.site.row.name in _THROUGH_SOFTMAX

    def _gradient_hook(self, layer: int) -> str:
        return hook_name(_PATTERN, layer) if self._exact else self.site.gradient_hook(layer)

    def _effects(self, tape: Tape, gradients: dict[str, Tensor], own: Tensor) -> Float[Tensor, "layer place unit row"]:
        found = torch.zeros(*self.result.shape[:-1], len(own), dtype=torch.float32)
        for index, layer in enumerate(self.asked.layers):
            name = self._gradient_hook(layer)
            if self._exact:
                found[index] = self._through_softmax(layer, tape.values[name], gradients[name], own)
            else:
                difference = self._wanted(layer, own) - self._has(layer, tape, own)
                found[index] = self._at_places(self._of_product(difference.to(gradients[name]) * gradients[name]))
        return found

    def _wanted(self, layer: int, own: Tensor) -> Tensor:
        """The states that the target's rows would get, from the first difference on."""
        return self._late(rows_of(self.site.states(self.contrast.source, layer), self.contrast.rows.source[own]))

    def _has(self, layer: int, tape: Tape, own: Tensor) -> Tensor:
        """Those that they have: by the pass itself, where it is of the target's own states and shows them."""
        if self.how.integrated:
            return self._own[layer][own]
        if not self.site.is_middle:
            return tape.values[self.site.gradient_hook(layer)]
        return self._late(rows_of(self.site.states(self.contrast.target, layer), self.contrast.rows.target[own]))

    def _late(self, states: Tensor) -> Tensor:
        first = self.contrast.first
        return states[:, :, first:] if self.site.is_pattern else states[:, first:]

    def _of_product(self, product: Tensor) -> Float[Tensor, "row position unit"]:
        product = product.float()
        if self.site.is_pattern:
            product = reduce(product, "row head query key -> row query head", "sum")
        elif self.site.unit == "head":
            product = reduce(product, "row position head d_head -> row position head", "sum")
        elif self.site.unit is None:
            product = reduce(product, "row position ... -> row position 1", "sum")
        return product[:, :, self.asked.units].cpu()

    def _at_places(self, product: Float[Tensor, "row position unit"]) -> Float[Tensor, "place unit row"]:
        first, found = self.contrast.first, []
        for place in self.asked.places:
            if place is None:
                found.append(product.sum(1))
            elif place < first:
                found.append(torch.zeros_like(product[:, 0]))
            else:
                found.append(product[:, place - first])
        return rearrange(torch.stack(found), "place row unit -> place unit row")

    def _through_softmax(
        self,
        layer: int,
        pattern: Float[Tensor, "row head query key"],
        gradient: Float[Tensor, "row head query key"],
        own: Tensor,
    ) -> Float[Tensor, "place unit row"]:
        """The change of the attention pattern, computed, times the gradient of the pattern."""
        n = gradient.shape[2]
        keys = self.site.row.name == "attn_head_k"
        if not keys or self.asked.places == [None]:
            # A query acts on its own row of the pattern alone, so that all may be exchanged at once.
            moved = (self._exchanged(layer, own, tuple(range(n))) - pattern) * gradient
            product = reduce(moved.float(), "row head query key -> row query head", "sum")
            return self._at_places(self._of_units(product).cpu())
        products = []
        for column in range(n):
            moved = (self._exchanged(layer, own, (column,)) - pattern) * gradient
            products.append(reduce(moved.float(), "row head query key -> row head", "sum"))
        return self._at_places(self._of_units(torch.stack(products, dim=1)).cpu())

    def _of_units(self, product: Float[Tensor, "row position head"]) -> Float[Tensor, "row position unit"]:
        """Each key's part is what all heads that share it have."""
        n = self.contrast.source.kept[self.site.row.at(self.asked.layers[0])].shape[self.site.row.unit_axis]
        return reduce(product, "row position (unit group) -> row position unit", "sum", unit=n)[:, :, self.asked.units]

    def _exchanged(self, layer: int, own: Tensor, columns: tuple[int, ...]) -> Float[Tensor, "row head query key"]:
        """The attention pattern where queries or keys of all heads take the source's states."""
        target, first = self.contrast.target, self.contrast.first
        rows, name, pattern = self.contrast.rows, self.site.row.at(layer), hook_name(_PATTERN, layer)
        wanted = rows_of(self.contrast.source.kept[name], rows.source[own])[:, first:][:, list(columns)]
        branch = Branch(
            layer=layer, rows=rows.target[own],
            states=rows_of(target.residuals[layer], rows.target[own])[:, first:],
            interventions={name: Pin(values=wanted, columns=columns)},
        )  # fmt: skip
        return target.record(first, branch, [pattern])[pattern]
