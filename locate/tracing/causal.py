"""Causal tracing: which states carry the fact from the subject to the answer."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corruption, describe
from locate.contrast.measures import Probability, as_metrics
from locate.contrast.metrics import Metric, Plain, hardly_differ, joint_measure
from locate.contrast.noise import GaussianNoise
from locate.contrast.pairs import Pair, PairedRuns, make_pairs, run_pairs
from locate.contrast.sweep import check_window, kept_hooks, sweep, sweep_heads
from locate.errors import FactError, LocateError, SiteError
from locate.facts.facts import Fact
from locate.facts.prompts import Positions, Prompt, rank_of, resolve_positions, token_strings
from locate.model.precision import check_precision, computing_in
from locate.names import DEFAULT_BUDGET, Direction, Precision
from locate.sites.site import TRACED, Kind, check_kind, check_traced, hook_name
from locate.tracing.trace import Trace

_WINDOW = 10
# Below this change of a probability, restoring a state can show nothing: there was hardly any effect to undo.
_SMALL_EFFECT = 0.01
# Rows of corrupted prompts that are traced together. Every site multiplies them, so that a few already make
# large matrix products; more would only take memory for the states that are kept.
ROWS_AT_A_TIME = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    fact: Fact
    pair: Pair
    positions: tuple[int, ...]

    @property
    def prompt(self) -> Prompt:
        return self.pair.clean


@overload
def causal_trace(
    model: TransformerBridge,
    fact: Fact,
    *,
    kinds: Sequence[str] = ...,
    window: int | None = ...,
    corruption: Corruption | None = ...,
    metric: Metric | Plain | str | Sequence[Metric | Plain | str] = ...,
    direction: Direction | str = ...,
    severed: Literal["mlp", "attn"] | None = ...,
    positions: Positions = ...,
    precision: Precision | str = ...,
    budget: int = ...,
    progress: bool = ...,
) -> Trace: ...
@overload
def causal_trace(
    model: TransformerBridge,
    fact: Sequence[Fact],
    *,
    kinds: Sequence[str] = ...,
    window: int | None = ...,
    corruption: Corruption | None = ...,
    metric: Metric | Plain | str | Sequence[Metric | Plain | str] = ...,
    direction: Direction | str = ...,
    severed: Literal["mlp", "attn"] | None = ...,
    positions: Positions = ...,
    precision: Precision | str = ...,
    budget: int = ...,
    progress: bool = ...,
) -> list[Trace]: ...
def causal_trace(
    model: TransformerBridge,
    fact: Fact | Sequence[Fact],
    *,
    kinds: Sequence[str] = ("resid", "mlp", "attn"),
    window: int | None = None,
    corruption: Corruption | None = None,
    metric: Metric | Plain | str | Sequence[Metric | Plain | str] = "probability",
    direction: Direction | str = "restore",
    severed: Literal["mlp", "attn"] | None = None,
    positions: Positions = "all",
    precision: Precision | str = "model",
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> Trace | list[Trace]:
    """Corrupt the subject, restore one state at a time, and see how much of the answer comes back.

    The method of Meng et al. 2022 (arXiv:2202.05262), section 2, exactly: every site of every kind, all
    noise samples, metrics averaged over samples (probabilities after the softmax).

    Args:
        model: a raw-mode bridge.
        fact: what to ask, one or many; the first token of its target is the answer. Facts whose prompts are
            of one length are traced together.
        kinds: one or more of ``resid`` (one state), ``mlp`` and ``attn`` (a window of that module's outputs) and
            ``attn_head`` (one head's output before the output projection).
        window: layers in a window, centred: [l − 5, l + 5) for 10, the default (or all layers of a smaller model).
        corruption: by default ``GaussianNoise(scale=3.0, samples=10, seed=1)``.
        metric: one or more of the metrics, by name, as objects, or as functions of last-position logits.
        direction: ``"restore"`` puts clean states into the corrupted run (which states suffice);
            ``"break"`` puts corrupted states into the clean run (which are necessary).
        severed: hold the outputs of this module (``"mlp"`` or ``"attn"``) at the restored token at their corrupted
            values, in all later layers: what of a ``resid`` effect does not go through them.
        positions: ``"all"`` tokens, those of the ``"subject"``, its last (``"subject_last"``), the prompt's
            ``"last"``, or indices.
        precision: ``"model"`` computes as the model's weights are; ``"bfloat16"`` runs the matrix products of the
            patched runs in bfloat16, which is faster and less exact (about three digits).
        budget: the most tokens (rows × positions) in one pass; less needs less memory.
        progress: whether to show a bar on anything longer than a second.

    Returns:
        One trace, or for several facts a list in their order.

    Raises:
        FactError: the subject is not in the prompt, the target has no token, or the corruption does not fit.
        SiteError: an unknown kind, a position out of range, or a window that the model has no room for.
        LocateError: no corruption, a metric of the wrong shape, or one that is not finite.

    >>> fact = locate.Fact(prompt="{} is located in the city of", subject="The Eiffel Tower", target="Paris")
    >>> trace = locate.causal_trace(model, fact, kinds=["mlp"], positions="subject")
    >>> trace.scores.dims
    ('kind', 'position', 'layer')
    """
    facts = [fact] if isinstance(fact, Fact) else list(fact)
    if not facts:
        raise FactError("There are no facts to trace; give at least one.")
    check_precision(precision, model)
    kinds = tuple(check_traced(kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))
    if not kinds or len(set(kinds)) < len(kinds):
        raise SiteError(f"Give at least one kind of {TRACED}, each once; found {kinds}.")
    if direction not in get_args(Direction):
        raise SiteError(f"direction must be one of {get_args(Direction)}, found {direction!r}.")
    if severed is not None and (kinds != ("resid",) or direction != "restore"):
        raise SiteError(
            f"A severed trace restores residual states: give kinds=('resid',) and direction='restore', found {kinds} "
            f"and {direction!r}."
        )
    n_layers = model.cfg.n_layers
    window = check_window(window, n_layers, usual=_WINDOW)
    corruption = GaussianNoise() if corruption is None else corruption
    if not isinstance(corruption, Corruption):
        raise LocateError(
            f"corruption must be one of locate's corruptions, such as GaussianNoise() or TokenSwap('The Colosseum'); "
            f"found {corruption!r}."
        )
    metrics = as_metrics(metric)
    asked = [_ask(model, one, corruption, positions) for one in facts]
    tracer = _Tracer(model, kinds, window, corruption, metrics, direction, severed, precision, budget)
    traces: dict[int, Trace] = {}
    with tqdm(
        total=sum(len(one.positions) for one in asked), desc="causal trace", disable=not progress, delay=1
    ) as bar:
        for batch in _batches(asked, corruption.samples):
            traces.update(zip(batch, tracer.trace([asked[index] for index in batch], bar), strict=True))
    return traces[0] if isinstance(fact, Fact) else [traces[index] for index in range(len(facts))]


def _ask(model: TransformerBridge, fact: Fact, corruption: Corruption, positions: Positions) -> _Asked:
    (pair,) = make_pairs(model, fact, corruption)
    assert pair.answer is not None
    if not model.tokenizer.decode([pair.answer]).strip():
        warnings.warn(
            f"The target {fact.target!r} begins with a token of white space alone, whose probability says little about "
            "the answer. Choose a fact whose target begins with a word.",
            stacklevel=4,
        )
    return _Asked(fact=fact, pair=pair, positions=resolve_positions(pair.clean, positions))


def _batches(asked: Sequence[_Asked], samples: int) -> Iterator[list[int]]:
    """Indices of facts to trace together: as many tokens, and not too many rows."""
    at_a_time = max(1, ROWS_AT_A_TIME // samples)
    by_length: dict[int, list[int]] = {}
    for index, one in enumerate(asked):
        by_length.setdefault(len(one.prompt.tokens), []).append(index)
    for group in by_length.values():
        # Neighbours in this order begin their subjects at the same position, so that they are traced from there on.
        group.sort(key=lambda index: asked[index].prompt.subject_span)
        for first in range(0, len(group), at_a_time):
            yield group[first : first + at_a_time]


@dataclass(frozen=True, eq=False)
class _Tracer:
    model: TransformerBridge
    kinds: tuple[str, ...]
    window: int
    corruption: Corruption
    metrics: tuple[Metric, ...]
    direction: str
    severed: str | None
    precision: str
    budget: int

    def trace(self, asked: Sequence[_Asked], bar: tqdm) -> list[Trace]:
        """Trace facts whose prompts have the same number of tokens."""
        runs = self._run(asked)
        own, rows = torch.arange(len(asked)), torch.arange(len(runs.owner))
        high = joint_measure(self.metrics, runs.questions, own)(runs.clean.logits, own).cpu()
        low = joint_measure(self.metrics, runs.questions, runs.owner)(runs.corrupted.logits, rows).cpu()
        self._warn(asked, runs, high, low)
        target, source, pairing, questioned = runs.direction(self.direction)
        measure = joint_measure(self.metrics, runs.questions, questioned)
        base = low if self.direction == "restore" else high[runs.owner]

        plain: list[Kind] = [check_kind(kind) for kind in self.kinds if kind != "attn_head"]
        length, n_layers = len(asked[0].prompt.tokens), self.model.cfg.n_layers
        n_heads = int(self.model.cfg.n_heads) if "attn_head" in self.kinds else 0
        # Before the subject nothing is corrupted, so patching a state there changes nothing.
        scores = base.expand(len(plain), length, n_layers, -1, -1).clone()
        heads = base.expand(length, n_layers, n_heads, -1, -1).clone()
        for position in sorted({position for one in asked for position in one.positions}):
            wanted = torch.tensor([position in one.positions and position >= one.pair.first for one in asked])
            wanted = wanted[runs.owner]
            if bool(wanted.any()):
                here, rows = {"positions": [position], "pairing": pairing.only(wanted)}, wanted.nonzero()[:, 0]
                with computing_in(self.precision, self.model):
                    if plain:
                        scores[:, position, :, rows] = sweep(
                            target, source, plain, measure, window=self.window, severed=self.severed, **here
                        )[:, 0].float().cpu()  # fmt: skip
                    if "attn_head" in self.kinds:
                        swept = sweep_heads(target, source, measure, **here)
                        heads[position, :, :, rows] = swept[0].float().cpu()
            bar.update(sum(position in one.positions for one in asked))
        return [
            self._result(one, runs, index, high[index], low[runs.owner == index], scores[..., runs.owner == index, :],
                         heads[..., runs.owner == index, :])
            for index, one in enumerate(asked)
        ]  # fmt: skip

    def _run(self, asked: Sequence[_Asked]) -> PairedRuns:
        n_layers = self.model.cfg.n_layers
        names = kept_hooks([kind for kind in self.kinds if kind != "attn_head"], n_layers)
        if "attn_head" in self.kinds:
            names += [hook_name("attn_head", layer) for layer in range(n_layers)]
        severed = [] if self.severed is None else [hook_name(self.severed, layer) for layer in range(n_layers)]
        # With the MLPs' own outputs at hand, a window of them need not run its first block.
        own = [hook_name("mlp", layer) for layer in range(n_layers)] if "mlp" in self.kinds else []
        source, target = (names, [*severed, *own]) if self.direction == "restore" else (own, names)
        return run_pairs(
            self.model, [one.pair for one in asked], keep_clean=source, keep_corrupted=target, budget=self.budget
        )

    def _warn(
        self, asked: Sequence[_Asked], runs: PairedRuns, high: Float[Tensor, "fact metric"],
        low: Float[Tensor, "row metric"],
    ) -> None:  # fmt: skip
        # Of the logits themselves: a rank, or a metric of one's own, may be finite where they are not.
        if not bool(torch.isfinite(runs.clean.logits).all() and torch.isfinite(runs.corrupted.logits).all()):
            raise LocateError("The model's logits are not finite on this prompt; check its dtype and weights.")
        for index, one in enumerate(asked):
            answer = int(runs.questions.answers[index])
            rank = rank_of(runs.clean.logits[index], answer)
            if rank > 1:
                warnings.warn(
                    f"The model does not answer {one.fact.text!r} with {one.fact.target!r}: it ranks {rank} of "
                    f"{self.model.cfg.d_vocab}. The trace shows how that token's probability comes back, not how a "
                    "known fact is recalled.",
                    stacklevel=4,
                )
            means = low[runs.owner == index].mean(0).tolist()
            for metric, top, bottom in zip(self.metrics, high[index].tolist(), means, strict=True):
                small = isinstance(metric, Probability) and abs(top - bottom) < _SMALL_EFFECT
                if small or hardly_differ(top, bottom):
                    warnings.warn(
                        f"Corrupting {one.fact.subject!r} changes {metric.name} by only {top - bottom:.3g}, so there "
                        "is hardly anything to restore and the scores mean little. Try a stronger corruption or "
                        "another prompt.",
                        stacklevel=4,
                    )

    def _result(
        self,
        one: _Asked,
        runs: PairedRuns,
        index: int,
        high: Float[Tensor, "metric"],
        low: Float[Tensor, "sample metric"],
        scores: Float[Tensor, "kind position layer sample metric"],
        heads: Float[Tensor, "position layer head sample metric"],
    ) -> Trace:
        positions, answer = list(one.positions), int(runs.questions.answers[index])
        data: dict[str, Any] = {
            "clean": ("metric", high.double().numpy()),
            "corrupted": ("metric", low.double().mean(0).numpy()),
        }
        if len(scores):
            dims = ("metric", "kind", "position", "layer")
            data["scores"], data["standard_error"] = ((dims, v) for v in _over_samples(scores[:, positions]))
        if "attn_head" in self.kinds:
            dims = ("metric", "position", "layer", "head")
            data["head_scores"], data["head_standard_error"] = ((dims, v) for v in _over_samples(heads[positions]))
        coords: dict[str, Any] = {
            "metric": [metric.name for metric in self.metrics], "position": positions,
            "layer": np.arange(self.model.cfg.n_layers),
        }  # fmt: skip
        if len(scores):
            coords["kind"] = [kind for kind in self.kinds if kind != "attn_head"]
        if "attn_head" in self.kinds:
            coords["head"] = np.arange(heads.shape[2])
        return Trace(
            data=xr.Dataset(data, coords=coords),
            metric=self.metrics[0].name,
            answer=self.model.tokenizer.decode([answer]),
            answer_rank=rank_of(runs.clean.logits[index], answer),
            tokens=tuple(token_strings(self.model, one.prompt.tokens)),
            subject_span=one.prompt.subject_span,
            info={
                "model": str(self.model.cfg.model_name), "prompt": one.prompt.text, "subject": one.fact.subject,
                "target": one.fact.target, "target_new": one.fact.target_new,
                "relation": one.fact.relation, "id": one.fact.id,
                "kinds": list(self.kinds), "window": self.window, "direction": self.direction, "severed": self.severed,
                "positions": positions, "precision": self.precision,
                "metrics": {metric.name: metric.label for metric in self.metrics},
                **describe(self.corruption), "subjects": list(one.pair.corrupted.subjects),
            },
        )  # fmt: skip


def _over_samples(scores: Float[Tensor, "*site sample metric"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over samples, with the metric first."""
    scores = scores.movedim(-1, 0)
    n = scores.shape[-1]
    error = scores.std(-1) / n**0.5 if n > 1 else torch.full_like(scores[..., 0], float("nan"))
    return scores.mean(-1).numpy(), error.numpy()
