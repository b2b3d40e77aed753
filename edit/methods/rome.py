"""Rank-one model editing: write one fact into one down-projection."""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.contexts import ContextBatch, build_contexts, sample_prefixes
from edit.corpus import SAMPLED
from edit.requests import EditRequest
from edit.statistics import KeyStatistics, key_statistics
from edit.updates import LowRank, WeightUpdate
from edit.values import Value, ValueObjective, optimise_value
from edit.weights import DownProjection, down_projection, model_fingerprint
from locate.devices import input_device
from locate.engine import DEFAULT_BUDGET
from locate.errors import FactError, NumericsError
from locate.prompts import encode_text
from locate.sites import check_layer

# ROME edits an early layer: 5 of 32 in Llama-type models, and 4 of 30 in a sweep (benchmarks/RESULTS.md).
_DEPTH = 0.145


@dataclass(frozen=True, kw_only=True)
class ROME:
    """Rank-one model editing (Meng et al. 2022, arXiv:2202.05262), with R-ROME's keys by default.

    The update is Δ = (v* − W k) uᵀ / (kᵀu) with u = C⁻¹k̄, the smallest change in the metric of the key
    statistics C that maps the key to v*.

    Args:
        layer: whose down-projection to edit; by default at 0.145 of the depth (5 of 32).
        original: False (default) uses the mean key k̄ over all prefixes everywhere, so that W'k̄ = v*
            exactly (R-ROME, Gupta et al. 2024, arXiv:2403.07175). True mixes it with the bare prompt's
            key as the original code does.
        objective: how v* is optimised.
        prefix_lengths: (length, count) of the sampled prefixes; the bare prompt comes on top.
        prefixes: texts to use instead of sampled ones (the bare prompt is added).
        statistics: key statistics to use; by default they are collected for the layer and cached.
        corpus: for collecting them: ``"sampled"``, a text file or a ``datasets`` name.
        statistics_tokens: how many keys to collect; by default 20 per key dimension.
        seed: of the sampled prefixes and text.
        budget: the most tokens in one pass.

    >>> update = edit.ROME(layer=4).fit(model, [edit.EditRequest(fact, target_new="Rome")])
    >>> update.rank
    1
    """

    layer: int | None = None
    original: bool = False
    objective: ValueObjective = field(default_factory=ValueObjective)
    prefix_lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    prefixes: tuple[str, ...] | None = None
    statistics: KeyStatistics | None = None
    corpus: str = SAMPLED
    statistics_tokens: int | None = None
    seed: int = 0
    budget: int = DEFAULT_BUDGET

    def fit(
        self, model: TransformerBridge, requests: Sequence[EditRequest] | EditRequest, *, progress: bool = True
    ) -> WeightUpdate:
        """Find the update that makes the model answer every request with its new target.

        Several requests are edited one after the other, each on the model with the earlier ones in
        place, and come back as one update. The model is left as it was.

        Raises:
            FactError: no requests, or one whose new target is already the model's answer.
            SiteError: the model has no such layer.
            NumericsError: an optimisation or solve went wrong; the message names the request.
        """
        if isinstance(requests, EditRequest):
            requests = [requests]
        if not requests:
            raise FactError("There are no requests to edit; give at least one EditRequest.")
        layer = self.resolve_layer(model)
        down = down_projection(model, layer)
        if self.prefixes is None:
            prefixes = sample_prefixes(model, self.prefix_lengths, self.seed)
        else:
            prefixes = ["", *self.prefixes]
        contexts = [_checked_contexts(model, request, prefixes) for request in requests]
        statistics = self.statistics or key_statistics(
            model, layer, corpus=self.corpus, tokens=self.statistics_tokens, seed=self.seed, progress=progress
        )
        self._check_statistics(model, statistics, down)
        name = down.name
        so_far: WeightUpdate | None = None
        log: list[dict[str, Any]] = []
        pairs = zip(requests, contexts, strict=True)
        for request, batch in tqdm(pairs, "ROME", total=len(requests), disable=not progress, delay=1):
            with so_far.applied(model) if so_far else contextlib.nullcontext():
                try:
                    value = optimise_value(model, batch, layer, self.objective, budget=self.budget)
                    factors = self._rank_one(down, value, statistics)
                except NumericsError as error:
                    raise NumericsError(f"{request.describe()}: {error}") from error
            log.append(
                {
                    "request": request.describe(), "prompt": request.fact.prompt,
                    "subject": request.fact.subject, "target": request.fact.target,
                    "target_new": request.target_new, "losses": value.losses, "stopped": value.stopped,
                    "value_norm": float(value.value.norm()), "initial_norm": float(value.initial.norm()),
                }
            )  # fmt: skip
            factors = factors if so_far is None else so_far.deltas[name].joined(factors)
            so_far = WeightUpdate.make(
                model, {name: factors}, method="ROME", info=self._info(layer, prefixes, statistics, log)
            )
        assert so_far is not None
        return so_far

    def resolve_layer(self, model: TransformerBridge) -> int:
        """The layer that will be edited."""
        if self.layer is None:
            return round(_DEPTH * model.cfg.n_layers)
        return check_layer(model, self.layer)

    def _rank_one(self, down: DownProjection, value: Value, statistics: KeyStatistics) -> LowRank:
        mean_key, mean_output = value.keys.mean(0), value.outputs.mean(0)
        key, output = (value.keys[0], value.outputs[0]) if self.original else (mean_key, mean_output)
        direction = statistics.solve(mean_key.cpu().double()[:, None])[:, 0]
        scale = direction @ key.cpu().double()
        if not torch.isfinite(scale) or scale.abs() < 1e-12 * direction.norm() * key.norm().item():
            raise NumericsError(
                "The update direction is orthogonal to the key, so no rank-one change can reach the value. "
                "Use original=False or more statistics."
            )
        right = (direction / scale).float()
        left = (value.value - output).float().cpu()
        return _stored(left, right, down.transposed)

    def _check_statistics(self, model: TransformerBridge, statistics: KeyStatistics, down: DownProjection) -> None:
        if statistics.layer != down.layer:
            raise NumericsError(
                f"The statistics are of layer {statistics.layer}, the edit is in layer {down.layer}. "
                f"Collect them with edit.key_statistics(model, {down.layer})."
            )
        size, found = down.parameter.shape[0 if down.transposed else 1], len(statistics.second_moment)
        if found != size:
            raise NumericsError(
                f"The statistics are of keys of dimension {found}, layer {down.layer} of this model has keys "
                f"of dimension {size}. Collect them with edit.key_statistics(model, {down.layer})."
            )
        if self.statistics is not None and statistics.fingerprint != model_fingerprint(model):
            warnings.warn(
                "The key statistics were collected on another model, or on this one before its weights changed. The "
                f"edit is only as good as they fit. Collect them with edit.key_statistics(model, {down.layer}).",
                stacklevel=3,
            )

    def _info(
        self, layer: int, prefixes: list[str], statistics: KeyStatistics, log: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "layer": layer, "original": self.original, "objective": asdict(self.objective),
            "prefix_lengths": self.prefix_lengths, "prefixes": prefixes[1:], "seed": self.seed,
            "statistics": {"corpus": statistics.corpus, "count": statistics.count, "seed": statistics.seed},
            "edits": list(log),
        }  # fmt: skip


def _checked_contexts(model: TransformerBridge, request: EditRequest, prefixes: list[str]) -> ContextBatch:
    batch = build_contexts(model, request, prefixes)
    prompt = encode_text(model, request.fact.text)
    ids = torch.cat([prompt, batch.target])
    with torch.no_grad():
        answers = model(ids[None].to(input_device(model)))[0].argmax(-1).cpu()
    if bool((answers[len(prompt) - 1 : -1] == batch.target).all()):
        raise FactError(
            f"{request.describe()}: the model already answers {request.target_new!r}, so there is nothing to "
            "change. Choose another new target, or drop the request."
        )
    return batch


def _stored(left: Float[Tensor, "d_model"], right: Float[Tensor, "d_mlp"], transposed: bool) -> LowRank:
    if transposed:
        return LowRank(left=right[:, None], right=left[None])
    return LowRank(left=left[:, None], right=right[None])
