"""The passes of a causal trace: facts whose prompts are of one length are traced together."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.contrast import Contrast
from locate.contrast.corruption import Corruption, describe
from locate.contrast.measures import Probability
from locate.contrast.metrics import Metric, hardly_differ
from locate.contrast.pairs import Pair
from locate.contrast.sweep import has_states, kept_hooks, sweep, sweep_heads, window_layers
from locate.engine.freezing import token_places
from locate.engine.reach import reaching_layers
from locate.errors import LocateError
from locate.facts.facts import Fact
from locate.facts.prompts import Prompt, answer_strings, rank_of, token_strings
from locate.model.precision import computing_in
from locate.sites.places import hooks_of, layers_with
from locate.sites.site import Kind, check_kind, hook_name
from locate.tracing.trace import Trace

# Below this change of a probability, restoring a state can show nothing: there was hardly any effect to undo.
_SMALL_EFFECT = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A fact to trace, encoded.

    Attributes:
        fact: as the user gave it.
        pair: its clean and corrupted prompts.
        answer: the first token of its target.
        positions: those to visit.
    """

    fact: Fact
    pair: Pair
    answer: int
    positions: tuple[int, ...]

    @property
    def prompt(self) -> Prompt:
        """The clean prompt."""
        return self.pair.clean


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracer:
    """How facts are traced: the options of ``causal_trace``, checked."""

    model: TransformerBridge
    kinds: tuple[str, ...]
    window: int
    corruption: Corruption
    metrics: tuple[Metric, ...]
    direction: str
    severed: str | None
    precision: str
    budget: int

    def trace(self, asked: Sequence[Asked], bar: tqdm) -> list[Trace]:
        """Trace facts whose prompts have the same number of tokens."""
        contrast = self._run(asked)
        ends, measure = contrast.ends(self.metrics), contrast.measure(self.metrics)
        clean, corrupted = (ends.source, ends.target) if self.direction == "restore" else ends
        plain: list[Kind] = [check_kind(kind) for kind in self.kinds if kind != "attn_head"]
        length, n_layers = len(asked[0].prompt.tokens), self.model.cfg.n_layers
        n_heads = int(self.model.cfg.n_heads) if "attn_head" in self.kinds else 0
        mine = [contrast.rows.question == index for index in range(len(asked))]
        self._warn(asked, contrast, [(clean[rows][0], corrupted[rows].mean(0)) for rows in mine])
        # Before the subject nothing is corrupted, so patching a state there changes nothing.
        scores = ends.target.expand(len(plain), length, n_layers, -1, -1).clone()
        heads = ends.target.expand(length, n_layers, n_heads, -1, -1).clone()
        spans = [window_layers(layer, self.window, n_layers) for layer in range(n_layers)]
        scores.transpose(1, 2)[~has_states(self.model, plain, spans)] = float("nan")
        if n_heads:
            heads[:, [layer not in layers_with(self.model, "attn_head") for layer in range(n_layers)]] = float("nan")
        for position in sorted({position for one in asked for position in one.positions}):
            wanted = torch.tensor([position in one.positions and position >= one.pair.first for one in asked])
            wanted = wanted[contrast.rows.question]
            if bool(wanted.any()):
                here, rows = contrast.only(wanted), wanted.nonzero()[:, 0]
                with computing_in(self.precision, self.model):
                    if plain:
                        scores[:, position, :, rows] = sweep(
                            here, plain, measure, positions=[position], window=self.window, severed=self.severed
                        )[:, 0].float().cpu()  # fmt: skip
                    if "attn_head" in self.kinds:
                        swept = sweep_heads(here, measure, positions=[position])
                        heads[position, :, :, rows] = swept[0].float().cpu()
            bar.update(sum(position in one.positions for one in asked))
        return [
            self._result(one, contrast.only(rows), clean[rows][0], corrupted[rows], scores[..., rows, :],
                         heads[..., rows, :])
            for one, rows in zip(asked, mine, strict=True)
        ]  # fmt: skip

    def _run(self, asked: Sequence[Asked]) -> Contrast:
        names = kept_hooks(self.model, [kind for kind in self.kinds if kind != "attn_head"])
        if "attn_head" in self.kinds:
            names += hooks_of(self.model, "attn_head")
        severed = [] if self.severed is None else hooks_of(self.model, self.severed)
        # With the MLPs' own outputs at hand, a window of them need not run its first block.
        own = hooks_of(self.model, "mlp") if "mlp" in self.kinds else []
        return Contrast.of_pairs(
            self.model, [one.pair for one in asked], direction=self.direction, keep=names,
            keep_target=[*severed, *own], metrics=self.metrics, budget=self.budget,
        )  # fmt: skip

    def _warn(
        self, asked: Sequence[Asked], contrast: Contrast, ends: Sequence[tuple[Float[Tensor, "metric"], ...]]
    ) -> None:
        # Of the logits themselves: a rank, or a metric of one's own, may be finite where they are not.
        if not all(bool(torch.isfinite(run.logits).all()) for run in (contrast.target, contrast.source)):
            raise LocateError("The model's logits are not finite on this prompt; check its dtype and weights.")
        for one, (clean, corrupted), logits in zip(asked, ends, contrast.questions.clean, strict=True):
            if (rank := rank_of(logits, one.answer)) > 1:
                warnings.warn(
                    f"The model does not answer {one.fact.text!r} with {one.fact.target!r}: it ranks {rank} of "
                    f"{self.model.cfg.d_vocab}. The trace shows how that token's probability comes back, not how a "
                    "known fact is recalled.",
                    stacklevel=4,
                )
            for metric, top, bottom in zip(self.metrics, clean.tolist(), corrupted.tolist(), strict=True):
                small = isinstance(metric, Probability) and abs(top - bottom) < _SMALL_EFFECT
                if small or hardly_differ(top, bottom):
                    warnings.warn(
                        f"Corrupting {one.fact.subject!r} changes {metric.name} by only {top - bottom:.3g}, so there "
                        "is hardly anything to restore and the scores mean little. Try a stronger corruption or "
                        "another prompt.",
                        stacklevel=4,
                    )

    def _of_tokens(self, pair: Pair) -> dict[str, Any]:
        """What the corruption changed, and what tokens bring that is not in the stream."""
        changed = [hook_name("embed"), *pair.corrupted.beside] if pair.corrupted.embeddings is not None else ["tokens"]
        return {"corrupted": changed, "beside_the_stream": sorted(map(str, token_places(self.model)))}

    def _result(
        self,
        one: Asked,
        contrast: Contrast,
        clean: Float[Tensor, "metric"],
        corrupted: Float[Tensor, "sample metric"],
        scores: Float[Tensor, "kind position layer sample metric"],
        heads: Float[Tensor, "position layer head sample metric"],
    ) -> Trace:
        positions = list(one.positions)
        data: dict[str, Any] = {
            "clean": ("metric", clean.double().numpy()),
            "corrupted": ("metric", corrupted.double().mean(0).numpy()),
        }
        coords: dict[str, Any] = {
            "metric": [metric.name for metric in self.metrics], "position": positions,
            "layer": np.arange(self.model.cfg.n_layers),
        }  # fmt: skip

        def averaged(values: Tensor) -> Iterator[np.ndarray]:
            return (rearrange(part, "... metric -> metric ...").numpy() for part in contrast.mean(values))

        if len(scores):
            dims = ("metric", "kind", "position", "layer")
            data["scores"], data["standard_error"] = ((dims, part) for part in averaged(scores[:, positions]))
            coords["kind"] = [kind for kind in self.kinds if kind != "attn_head"]
        if "attn_head" in self.kinds:
            dims = ("metric", "position", "layer", "head")
            data["head_scores"], data["head_standard_error"] = ((dims, part) for part in averaged(heads[positions]))
            coords["head"] = np.arange(heads.shape[2])
        return Trace(
            data=xr.Dataset(data, coords=coords),
            metric=self.metrics[0].name,
            answer=self.model.tokenizer.decode([one.answer]),
            answer_rank=rank_of(contrast.questions.clean[int(contrast.rows.question[0])], one.answer),
            tokens=tuple(token_strings(self.model, one.prompt.tokens)),
            subject_span=one.prompt.subject_span,
            info={
                "model": str(self.model.cfg.model_name), "prompt": one.prompt.text, "subject": one.fact.subject,
                "target": one.fact.target, "answer_tokens": answer_strings(self.model, one.prompt, one.fact.target),
                "target_new": one.fact.target_new,
                "relation": one.fact.relation, "id": one.fact.id,
                "kinds": list(self.kinds), "window": self.window, "direction": self.direction, "severed": self.severed,
                "positions": positions, "precision": self.precision,
                "metrics": {metric.name: metric.label for metric in self.metrics},
                "reaching": len(reaching_layers(self.model)), **self._of_tokens(one.pair),
                **describe(self.corruption), "subjects": list(one.pair.corrupted.subjects),
            },
        )  # fmt: skip
