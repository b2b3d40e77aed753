"""Causal tracing: which states carry the fact from the subject to the answer."""

import warnings
from collections.abc import Sequence
from typing import Literal, overload

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.contrast.corruption import Corruption
from locate.contrast.measures import as_metrics
from locate.contrast.metrics import Metric, Metrics, OverAnswer
from locate.contrast.noise import GaussianNoise
from locate.contrast.pairs import check_direction, make_pairs
from locate.contrast.sweep import check_window
from locate.errors import FactError, LocateError, SiteError
from locate.facts.facts import Fact
from locate.facts.prompts import Positions, resolve_positions
from locate.model.precision import check_precision
from locate.names import DEFAULT_BUDGET, Direction, Precision
from locate.sites.site import TRACED, check_traced
from locate.tracing.batches import group_prompts
from locate.tracing.trace import Trace
from locate.tracing.tracer import Asked, Tracer

_WINDOW = 10


@overload
def causal_trace(
    model: TransformerBridge,
    fact: Fact,
    *,
    kinds: Sequence[str] = ...,
    window: int | None = ...,
    corruption: Corruption | None = ...,
    metric: Metrics = ...,
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
    metric: Metrics = ...,
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
    metric: Metrics = "probability",
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
    check_direction(direction)
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
    asked = [_ask(model, one, corruption, positions, metrics) for one in facts]
    tracer = Tracer(
        model=model, kinds=kinds, window=window, corruption=corruption, metrics=metrics, direction=direction,
        severed=severed, precision=precision, budget=budget,
    )  # fmt: skip
    traces: dict[int, Trace] = {}
    with tqdm(
        total=sum(len(one.positions) for one in asked), desc="causal trace", disable=not progress, delay=1
    ) as bar:
        for batch in group_prompts([one.prompt for one in asked], corruption.samples):
            traces.update(zip(batch, tracer.trace([asked[index] for index in batch], bar), strict=True))
    return traces[0] if isinstance(fact, Fact) else [traces[index] for index in range(len(facts))]


def _ask(
    model: TransformerBridge, fact: Fact, corruption: Corruption, positions: Positions, metrics: Sequence[Metric]
) -> Asked:
    (pair,) = make_pairs(model, fact, corruption, metrics)
    assert pair.answer is not None
    over = any(isinstance(metric, OverAnswer) for metric in metrics)
    if not over and not model.tokenizer.decode([pair.answer]).strip():
        warnings.warn(
            f"The target {fact.target!r} begins with a token of white space alone, whose probability says little about "
            "the answer. Ask for all of it: metric='sequence_probability'.",
            stacklevel=4,
        )
    return Asked(fact=fact, pair=pair, answer=pair.answer, positions=resolve_positions(pair.clean, positions))
