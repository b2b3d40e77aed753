"""Rank-one model editing: write one fact into one down-projection."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Share, Unchecked, hyperparameters
from edit.methods.base import EarlierEdits, Fitted, Lengths, Written, matrix_of, stored
from edit.methods.rewriting.locate_then_edit import LocateThenEdit, described_edit, mean_over_prefixes
from edit.methods.rewriting.solves import Factors
from edit.methods.rewriting.stabilisers import reference_norm
from edit.methods.where import Where, layers_at
from edit.requests.conflicts import warn_of_shared_keys
from edit.requests.requests import Cases, EditRequest
from edit.statistics import KeyStatistics
from edit.values.contexts import Contexts
from edit.values.objective import Value
from locate.errors import NumericsError, SiteError
from locate.model.weights import DownProjection, down_projection

# ROME edits an early layer: 5 of 32 in Llama-type models, and 4 of 30 in a sweep (benchmarks/RESULTS.md).
_DEPTH = 0.145


@hyperparameters
class ROME(LocateThenEdit):
    """Rank-one model editing (Meng et al. 2022, arXiv:2202.05262), with R-ROME's keys by default.

    The update is Δ = (v* − W k) uᵀ / (kᵀu) with u = C⁻¹k̄, the smallest change in the metric of the key
    statistics C that maps the key to v*. Several requests are edited one after the other, each on the model with
    the earlier ones in place, and come back as one update.

    Args:
        layer: whose down-projection to edit; by default at 0.145 of the depth (5 of 32).
        original: False (default) uses the mean key k̄ over all prefixes everywhere, so that W'k̄ = v*
            exactly (R-ROME, Gupta et al. 2024, arXiv:2403.07175). True mixes it with the bare prompt's
            key as the original code does.
        bare_weight: of the bare prompt in the mean key, by default as MEMIT's mean has it; None for as much as any one
            prefix, as published for R-ROME. A model without a first token of its own has another key for a subject that
            opens the text than for one after a prefix, and with None the bare prompt gets a part of the value only
            (efficacy 96% in place of 100 on 50 CounterFact edits, benchmarks/RESULTS.md). The original form's k̄ is
            the plain mean, as published.

    >>> update = edit.ROME(layer=4).fit(model, [edit.EditRequest(fact, target_new="Rome")])
    >>> update.rank
    1
    """

    one_by_one: ClassVar[bool] = True

    prefix_lengths: Lengths = ((5, 10), (10, 10))
    layer: Annotated[Where | None, Unchecked] = None
    original: bool = False
    bare_weight: Share | None = 0.5

    def resolve_layer(self, model: TransformerBridge, where: Where | None = None) -> int:
        """The layer that will be edited."""
        where = self.layer if where is None else where
        if where is None:
            return round(_DEPTH * model.cfg.n_layers)
        *others, last = layers_at(model, where)
        if others:
            raise SiteError(f"ROME edits one layer, found {[*others, last]}. MEMIT and others spread over several.")
        return last

    def edited_layers(self, model: TransformerBridge, where: Where | None = None) -> tuple[int, ...]:
        """The layer that ``fit`` would edit."""
        return (self.resolve_layer(model, where),)

    def fit_with(
        self,
        model: TransformerBridge,
        requests: Cases,
        *,
        layer: Where | None = None,
        earlier: EarlierEdits | None = None,
        progress: bool = True,
    ) -> Fitted:
        """See ``EditingMethod.fit``."""
        at = self.resolve_layer(model, layer)
        down = down_projection(model, at)
        earlier = earlier or EarlierEdits()
        requests, contexts, prefixes = self._prepared(model, requests, earlier)
        statistics = self._statistics(model, {at: down}, earlier, progress)[at]
        changes, delta, written = dict(earlier.changes), None, None
        edits: list[dict[str, Any]] = []
        values: list[Value] = []
        anchors, found = earlier.anchors, list[Value]()
        if at not in anchors and any(stabiliser.anchored for stabiliser in self.stabilisers):
            # All on the model as it is: later values of the batch are found on an edited one.
            found = self._values(model, contexts, at, progress)
            anchors = {at: reference_norm(found)}

        def edited() -> Any:
            return nullcontext() if delta is None else WeightUpdate.make(
                model, {down.name: delta}, method="partial").applied(model)  # fmt: skip

        pairs = zip(requests, contexts, strict=True)
        for request, batch in tqdm(pairs, "ROME", total=len(requests), disable=not progress, delay=1):
            with edited():
                # The first is found on the model as it is in any case.
                (value,) = found[:1] if found and not values else self._values(model, [batch], at, progress=False)
                values.append(value)
                own, one = self._write(
                    down, request, value, statistics, replace(earlier, changes=changes, anchors=anchors)
                )
            edits.append(described_edit(request, value))
            written = one if written is None else written.joined(one)
            delta = own if delta is None else delta.joined(own)
            changes[down.name] = own if down.name not in changes else changes[down.name].joined(own)
        assert delta is not None
        assert written is not None
        before = earlier.written.get(at)
        warn_of_shared_keys(requests, written.keys, written.keys[:0] if before is None else before.keys)
        info = {"layer": at, **self._info([at], prefixes, {at: statistics}, edits)}
        update = WeightUpdate.make(model, {down.name: delta}, method="ROME", info=info)
        return Fitted(update=update, written={at: written}, anchors=anchors or {at: reference_norm(values)})

    def _fit_one(
        self, model: TransformerBridge, request: EditRequest, context: Contexts, prefixes: list[str],
        statistics: Mapping[int, KeyStatistics], value: Value, where: Where | None,
    ) -> WeightUpdate:  # fmt: skip
        at = self.resolve_layer(model, where)
        down = down_projection(model, at)
        delta, _ = self._write(down, request, value, statistics[at], EarlierEdits())
        info = self._info([at], prefixes, statistics, [described_edit(request, value)])
        return WeightUpdate.make(model, {down.name: delta}, method="ROME", info={"layer": at, **info})

    def _value_layer(self, model: TransformerBridge, where: Where | None) -> int:
        return self.resolve_layer(model, where)

    def _write(
        self, down: DownProjection, request: EditRequest, value: Value, statistics: KeyStatistics, earlier: EarlierEdits
    ) -> tuple[LowRank, Written]:
        """One request's change of the weights as they are, and what it writes."""
        for stabiliser in self.stabilisers:
            (value,) = stabiliser.values([value], earlier.anchors.get(down.layer))
        try:
            delta = self.stabilised(self._rank_one(down, value, statistics), down, earlier)
        except NumericsError as error:
            raise NumericsError(f"{request.describe()}: {error}") from error
        return delta, self._written(down, value)

    def solve(
        self,
        keys: Float[Tensor, "edit d_mlp"],
        residuals: Float[Tensor, "edit d_model"],
        statistics: KeyStatistics,
        earlier: Float[Tensor, "before d_mlp"],
    ) -> Factors:
        """See ``LocateThenEdit.solve``; each key is written after the ones before it."""
        lefts, rights = [], []
        for index in range(len(keys)):
            right = self._direction(keys[index], keys[index], statistics)
            residual = residuals[index].double()
            for left, earlier_right in zip(lefts, rights, strict=True):
                residual = residual - left * (earlier_right @ keys[index].double())
            lefts.append(residual)
            rights.append(right)
        return torch.stack(lefts, dim=1), torch.stack(rights)

    def _rank_one(self, down: DownProjection, value: Value, statistics: KeyStatistics) -> LowRank:
        key, output = self._written_at(value)
        right = self._direction(self._mean(value.keys), key, statistics)
        left = value.value.cpu().double() - output.double()
        return stored(left[:, None], right[None], down)

    def _written_at(self, value: Value) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:
        """The key that is given the value, and what the down-projection gives there now."""
        if self.original:
            return value.keys[0], value.outputs[0]
        return self._mean(value.keys), self._mean(value.outputs)

    def _mean(self, rows: Float[Tensor, "prefix d"]) -> Float[Tensor, "d"]:
        return mean_over_prefixes(rows, None if self.original else self.bare_weight)

    def _direction(
        self, mean_key: Float[Tensor, "d_mlp"], key: Float[Tensor, "d_mlp"], statistics: KeyStatistics
    ) -> Float[Tensor, "d_mlp"]:
        """u / (kᵀu) with u = C⁻¹k̄."""
        ridge = self._extra_ridge(statistics.second_moment.diagonal())
        direction = statistics.solve(mean_key.double()[:, None], ridge=ridge)[:, 0]
        scale = direction @ key.double()
        if not torch.isfinite(scale) or scale.abs() < 1e-12 * direction.norm() * key.norm().item():
            raise NumericsError(
                "The update direction is orthogonal to the key, so no rank-one change can reach the value. "
                "Use original=False or more statistics."
            )
        return direction / scale

    def _written(self, down: DownProjection, value: Value) -> Written:
        key, output = self._written_at(value)
        wanted = key.double() @ matrix_of(down).T + (value.value.cpu().double() - output.double())
        return Written(layer=down.layer, keys=key[None].float(), values=wanted[None].float())
