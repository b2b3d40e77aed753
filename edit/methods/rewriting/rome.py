"""Rank-one model editing: write one fact into one down-projection."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.changes.lowrank import LowRank
from edit.changes.updates import WeightUpdate
from edit.hyperparameters import Share, Told, Unchecked, hyperparameters, refused
from edit.methods.base import EarlierEdits, Fitted, Written
from edit.methods.rewriting.locate_then_edit import LocateThenEdit, Prepared
from edit.methods.rewriting.record import described_edit, record
from edit.methods.rewriting.rewriting import Lengths, matrix_of, stored, under
from edit.methods.rewriting.solves import Factors, Problem, mean_over_prefixes
from edit.methods.rewriting.stabilisers import reference_norm
from edit.methods.where import Where, layers_at
from edit.requests.conflicts import warn_of_shared_keys
from edit.requests.requests import EditRequest
from edit.statistics import KeyStatistics
from edit.values.contexts import Contexts, Openings, build_contexts
from edit.values.objective import ENDING_OBJECTIVE, Value, ValueObjective
from edit.values.progress import StepBar
from locate.errors import NumericsError, SiteError
from locate.model.weights import DownProjection, down_projection

# ROME edits an early layer: 5 of 32 in Llama-type models, and 4 of 30 in a sweep (benchmarks/RESULTS.md).
_DEPTH = 0.145

_Weight = Annotated[Share | Literal["even"], Told('must be from 0 to 1, found {}. "even" and None are possible, too.')]


def _with_places(openings: Openings) -> Openings:
    if any(text.count("{}") != 1 or not word.strip() for text, word in openings):
        raise refused("each is a text with one {{}} and a word, such as ('About {{}}. ', 'it'); found {}.")
    return openings


_Openings = Annotated[
    Openings,
    Told("give pairs of a text with one {{}} and a word, such as (('About {{}}. ', 'it'),); found {}."),
    AfterValidator(_with_places),
]


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
        bare_weight: of the bare prompt's key in the mean key. A model without a first token of its own has another key
            for a subject that opens the text than for one after a prefix, and a mean of both need not give either the
            whole of the value. ``"even"`` (default) is the weight from 0 to 1 with which both get the same part of it;
            what is added is then δ itself, so that W'k̄ = W k̄ + δ. 0.5 is MEMIT's, None as much as any one prefix,
            as published for R-ROME. The original form's k̄ is the plain mean, as published.
        openings: texts that name the subject before the prompt asks about it, with ``{}`` in its place, and the word
            that then stands for it in the prompt. The value must hold there too: what a prompt's own wording does not
            decide carries over to others (benchmarks/RESULTS.md). () for none, as published. The default's are English,
            whatever the language of the prompt; those of its own may be given, such as
            ``(("{}：", "它"), ("关于{}。", "它"))``.
        objective: how values are optimised, by default so that the answer ends after the new object, which is what it
            takes for it to be said; ``ValueObjective()`` asks for the new object alone.

    >>> update = edit.ROME(layer=4).fit(model, [edit.EditRequest(fact, target_new="Rome")])
    >>> update.rank
    1
    """

    one_by_one: ClassVar[bool] = True

    prefix_lengths: Lengths = ((5, 10), (10, 10))
    objective: ValueObjective = ENDING_OBJECTIVE
    layer: Annotated[Where | None, Unchecked] = None
    original: bool = False
    bare_weight: _Weight | None = "even"
    openings: _Openings = (("{}: ", "this"), ("About {}. ", "it"), ("{}\n", "it"))

    @property
    def writes_again(self) -> bool:
        """Not in the original form, whose keys are not those that are solved for."""
        return not self.original

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

    def value_layer(self, model: TransformerBridge, where: Where | None) -> int:
        """The layer that ``fit`` would edit."""
        return self.resolve_layer(model, where)

    def contexts_of(self, model: TransformerBridge, request: EditRequest, prefixes: Sequence[str]) -> Contexts:
        """See ``LocateThenEdit.contexts_of``; with the openings."""
        ends = self.value_objective().end > 0
        return build_contexts(model, request, prefixes, openings=self.openings, ends=ends)

    def write(self, prepared: Prepared) -> Fitted[WeightUpdate]:
        """Write one request after the other, each on the model with the earlier ones in place."""
        job, known = prepared.job, list(prepared.values)
        model, earlier, anchors = job.model, job.earlier, job.earlier.anchors
        ((at, statistics),) = prepared.statistics.items()
        down = down_projection(model, at)
        if at not in anchors and any(stabiliser.anchored for stabiliser in self.stabilisers):
            # All on the model as it is: later values of the batch are found on an edited one.
            known = known or self._values(job, prepared.contexts, at)
            anchors = {at: reference_norm(known)}
        deltas: dict[str, LowRank] = {}
        changes = dict(earlier.changes)
        written: list[Written] = []
        edits: list[dict[str, Any]] = []
        values: list[Value] = []
        pairs = zip(job.requests, prepared.contexts, strict=True)
        sought = len(job.requests) - bool(known)
        with StepBar(requests=sought, steps=self.value_objective().steps, shown=job.progress) as bar:
            for request, context in pairs:
                with under(model, deltas):
                    # The first is found on the model as it is in any case.
                    first = known[:1] if not values else []
                    (value,) = first or self._values(job, [context], at, bar)
                    values.append(value)
                    so_far = replace(earlier, changes=changes, anchors=anchors)
                    delta, own = self._write(down, request, value, statistics, so_far)
                edits.append(described_edit(request, context, value))
                written.append(own)
                for joint in (deltas, changes):
                    joint[down.name] = joint[down.name].joined(delta) if down.name in joint else delta
        total = reduce(Written.joined, written)
        warn_of_shared_keys(job.requests, total.keys, earlier.keys(at, down.key_size))
        info = {"layer": at, **record(self, prepared, edits)}
        update = WeightUpdate.make(model, deltas, method=self.name, info=info)
        return Fitted(update=update, written={at: total}, anchors=anchors or {at: reference_norm(values)})

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
        return delta, self._written(down, value, statistics)

    def solve(self, problem: Problem) -> Factors:
        """See ``LocateThenEdit.solve``; each key is written after the ones before it."""
        keys, residuals = problem.keys, problem.residuals
        lefts, rights = [], []
        for index in range(len(keys)):
            right = self._direction(keys[index], keys[index], problem.statistics)
            residual = residuals[index].double()
            for left, earlier_right in zip(lefts, rights, strict=True):
                residual = residual - left * (earlier_right @ keys[index].double())
            lefts.append(residual)
            rights.append(right)
        return torch.stack(lefts, dim=1), torch.stack(rights)

    def _rank_one(self, down: DownProjection, value: Value, statistics: KeyStatistics) -> LowRank:
        key, output = self._written_at(value, statistics)
        mean = value.keys.mean(0) if self.original else key
        right = self._direction(mean, key, statistics)
        left = value.value.cpu().double() - output.double()
        return stored(left[:, None], right[None], down)

    def _written_at(
        self, value: Value, statistics: KeyStatistics
    ) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:
        """The key that is given the value, and the output that the value is given instead of."""
        if self.original:
            return value.keys[0], value.outputs[0]
        if self.bare_weight == "even":
            return mean_over_prefixes(value.keys, self._even_weight(value, statistics)), value.outputs[0]
        weight = self.bare_weight
        return mean_over_prefixes(value.keys, weight), mean_over_prefixes(value.outputs, weight)

    def _even_weight(self, value: Value, statistics: KeyStatistics) -> float | None:
        """Of the bare prompt's key, so that u = C⁻¹k̄ has the same product with it as with the prefixes' mean.

        Where none from 0 to 1 does that, the nearest. None where there are no prefixes, or all keys are alike.
        """
        if len(value.keys) == 1:
            return None
        keys = torch.stack([value.keys[0], value.keys[1:].mean(0)], dim=1).double()
        products = keys.T @ statistics.solve(keys, ridge=self._extra_ridge(statistics.second_moment.diagonal()))
        between = float(products[0, 0] + products[1, 1] - 2 * products[0, 1])
        if between <= 0:
            return None
        return min(1.0, max(0.0, float(products[1, 1] - products[0, 1]) / between))

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

    def _written(self, down: DownProjection, value: Value, statistics: KeyStatistics) -> Written:
        key, output = self._written_at(value, statistics)
        wanted = key.double() @ matrix_of(down).T + (value.value.cpu().double() - output.double())
        return Written(layer=down.layer, keys=key[None].float(), values=wanted[None].float())
