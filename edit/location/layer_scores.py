"""What each way of locating says of every layer, fact by fact: larger where it would edit."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.requests.requests import EditRequest
from edit.values.contexts import build_contexts
from locate.contrast.corruption import Corruption
from locate.contrast.noise import GaussianNoise
from locate.engine import Branch, freeze
from locate.engine.gradients import Tape, backward_passes
from locate.errors import tell
from locate.facts.facts import Fact
from locate.model.anatomy import down_module
from locate.neurons.knowledge import knowledge_neurons
from locate.patching.attribute import attribute
from locate.results import restoring
from locate.sites.table import hook_name
from locate.tracing.causal import causal_trace

Scores = Float[np.ndarray, "fact layer"]


def traced_layers(
    model: TransformerBridge,
    facts: Sequence[Fact],
    kinds: Sequence[str] = ("mlp",),
    *,
    window: int | None = None,
    corruption: Corruption | None = None,
    progress: bool = True,
) -> dict[str, Scores]:
    """By kind, the indirect effect of causal tracing at the subject's last token; NaN in layers without such a state.

    Args:
        model: a raw-mode bridge.
        facts: to trace.
        kinds: of states, as in ``locate.causal_trace``.
        window: of modules, likewise.
        corruption: likewise.
        progress: whether to show a bar.

    >>> traced_layers(model, facts[:2], corruption=swap)["mlp"].shape
    (2, 9)
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        traces = causal_trace(
            model, list(facts), kinds=list(kinds), window=window, corruption=corruption, positions="subject_last",
            progress=progress,
        )  # fmt: skip
    if told:  # once, and not for each of many
        tell(f"{len(told)} of {len(facts)} traces mean little; the first: {told[0].message}")
    effects = [restoring(trace.indirect_effect, trace.total_effect).isel(position=0) for trace in traces]
    return {kind: np.stack([one.sel(kind=kind).values for one in effects]).astype(float) for kind in kinds}


def gradient_layers(model: TransformerBridge, requests: Sequence[EditRequest], *, progress: bool = True) -> Scores:
    """The norm of the gradient of the new object's mean NLL with respect to each layer's down-projection.

    All layers come from one backward pass: a layer's gradient is the sum over positions of what flows back to the
    down-projection's output times what it reads. NaN in layers without a single down-projection.

    >>> gradient_layers(model, [request]).shape
    (1, 9)
    """
    n = model.cfg.n_layers
    layers = [layer for layer in range(n) if down_module(model.blocks[layer]) is not None]
    outs, ins = ([hook_name(name, layer) for layer in layers] for name in ("down_out", "down_in"))
    scores = np.full((len(requests), n), np.nan)
    for index, request in enumerate(tqdm(requests, "gradients", disable=not progress, delay=1)):
        context = build_contexts(model, request, [""])
        bare, target = context.asking[0], context.target
        places = bare.end + torch.arange(len(target))
        run = freeze(model, bare.tokens[None], at=(torch.zeros(len(target), dtype=torch.long), places))

        def loss(logits: Tensor, rows: Tensor, target: Tensor = target) -> Tensor:
            return F.cross_entropy(logits.float(), target.to(logits.device))[None, None]

        def use(tape: Tape, index: int = index) -> None:
            gradients = tape.gradients()
            for layer, out, into in zip(layers, outs, ins, strict=True):
                back, keys = gradients[out][0].float(), tape.values[into][0].float()
                whole = einsum(back, keys.to(back), "position d_model, position d_mlp -> d_model d_mlp")
                scores[index, layer] = float(whole.norm())

        branch = Branch(layer=0, rows=torch.tensor([0]), states=run.residuals[0])
        backward_passes(run, 0, branch, outs, loss, use, seen=ins)
    return scores


def relevance_layers(
    model: TransformerBridge, facts: Sequence[Fact], *, corruption: Corruption | None = None, progress: bool = True
) -> Scores:
    """What corrupting each MLP's output at the subject's last token would take from the answer, estimated by RelP.

    >>> relevance_layers(model, facts[:1], corruption=swap).shape
    (1, 9)
    """
    corruption = GaussianNoise() if corruption is None else corruption
    scores = np.full((len(facts), model.cfg.n_layers), np.nan)
    for index, fact in enumerate(tqdm(facts, "RelP", disable=not progress, delay=1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tracing has told of hardly any effect
            found: Any = attribute(
                model, fact, corruption, method="relp", sites="mlp_out", positions="subject_last",
                metric="log_probability", progress=False,
            )  # fmt: skip
        effect = found.effect.isel(position=0)
        scores[index, effect["layer"].values] = restoring(-effect, found.clean - found.corrupted).values
    return scores


def neuron_layers(
    model: TransformerBridge, facts: Sequence[Fact], *, steps: int | None = None, progress: bool = True
) -> Scores:
    """What is attributed to each layer's knowledge neurons: those that pass a fifth of the fact's largest attribution.

    >>> neuron_layers(model, facts[:1], steps=5).shape
    (1, 9)
    """
    bare = [replace(fact, paraphrases=()) for fact in facts]
    found = knowledge_neurons(model, bare, steps=steps, progress=progress)
    return found.scores.where(found.kept > 0, 0).sum("neuron").values.astype(float)
