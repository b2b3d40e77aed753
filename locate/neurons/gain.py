"""Log-probability gain: by how much each neuron, and each head from each position, makes an answer likelier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from locate.engine import DEFAULT_BUDGET
from locate.engine.rows import Budget
from locate.errors import FactError, LocateError, ModelError
from locate.facts.facts import Fact
from locate.facts.prompts import token_strings
from locate.model.anatomy import check_layer
from locate.model.weights import check_down_projections
from locate.neurons.asking import ask
from locate.neurons.gained import LogprobGain
from locate.neurons.states import State, read_state
from locate.neurons.writing import layers_of_heads

# Neurons whose gains are made together at the least, where few are asked for.
_FEW = 64


def neuron_logprob_gain(
    model: TransformerBridge,
    facts: Sequence[Fact] | Fact,
    *,
    layers: Sequence[int] | None = None,
    heads: bool = True,
    screen: int | None = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool = True,
) -> LogprobGain:
    """log p(w | h + v) − log p(w | h) for what every neuron writes at the last position (Yu & Ananiadou 2024,
    arXiv:2312.12141): ``v`` is its activation times its row of the down-projection, ``w`` the answer's first token.

    ``h`` is what stands in the stream when the MLP writes there; the final norm keeps the scale that it has in the real
    run, so that a layer's gains say what it adds to the real logits. Of a head, ``v`` is what it takes from one
    position, and ``h`` what stands in the stream before attention. Norms after the MLP or attention keep their scales.

    All neurons of several facts share one product with the unembedding. Of a few facts it is most of the work, and
    ``screen`` spares it: no gain is larger than its first-order estimate (Jensen's inequality), so that the best
    neurons are found without the others.

    Args:
        model: a raw-mode bridge.
        facts: one or several, each asked by its prompt.
        layers: of the neurons and heads; by default all.
        heads: whether heads are told as well.
        screen: compute so many of the largest gains of each fact exactly, and give their upper bounds for the others.
        budget: the most tokens in one pass; what is held over the vocabulary has a bound of its own.
        progress: whether to show a bar on anything longer than a second.

    Raises:
        FactError: there are no facts, or a prompt cannot be used.
        SiteError: the model has no such layer.
        LocateError: nothing to screen, or no layers.
        ModelError: a layer has no single MLP, what it adds is not the sum of what neurons (or heads) write, or logits
            are not read from the stream by a norm and the unembedding; ``screen`` where they are capped.

    >>> gain = locate.neuron_logprob_gain(model, fact, progress=False)
    >>> gain.best().kind, gain.top_heads(1).columns.tolist()
    ('neuron', ['layer', 'head', 'position', 'token', 'score'])
    """
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    if not facts:
        raise FactError("There are no facts to attribute; give at least one.")
    if screen is not None and screen < 1:
        raise LocateError(f"screen must be 1 or more, or None for all; found {screen}.")
    check_down_projections(model)
    chosen = sorted({check_layer(model, layer) for layer in (range(model.cfg.n_layers) if layers is None else layers)})
    if not chosen:
        raise LocateError("layers: give at least one.")
    questions = [ask(model, fact, own=True) for fact in facts]
    of_heads = [layer for layer in layers_of_heads(model) if layer in chosen] if heads else []
    states: list[State] = []
    for one in tqdm(questions, "reading", unit="fact", disable=not progress, delay=1):
        states.append(read_state(model, one, chosen, of_heads, states[0].readout if states else None, budget))
    at_once = Budget.of(model, budget).distributions
    if screen is None:
        data = {"scores": _every(states, at_once, progress)}
    else:
        found = [
            _screened(state, screen, at_once)
            for state in tqdm(states, "gains", unit="fact", disable=not progress, delay=1)
        ]
        gains, exact = zip(*found, strict=True)
        data = {"scores": torch.stack(gains), "exact": torch.stack(exact)}
    arrays: dict[str, Any] = {name: (("fact", "layer", "neuron"), table.cpu().numpy()) for name, table in data.items()}
    if of_heads:
        arrays["heads"] = (("fact", "layer", "head", "source"), _of_heads(states, chosen, at_once))
    coords = {"fact": [fact.text for fact in facts], "layer": chosen}
    info = {
        "model": str(model.cfg.model_name), "method": "log-probability gain", "measure": "log-probability",
        "screen": screen, "prompts": [[one.prompts[0].text] for one in questions],
        "tokens": [token_strings(model, one.prompts[0].tokens) for one in questions],
        "answer_tokens": [one.spelled for one in questions],
    }  # fmt: skip
    return LogprobGain(data=xr.Dataset(arrays, coords=coords), info=info)


@torch.no_grad()
def _every(states: Sequence[State], at_once: int, progress: bool) -> Float[Tensor, "fact layer neuron"]:
    """All gains: norms scale a direction alike in all runs but for a number, so that its logits are made once."""
    first = states[0]
    table = []
    for row, own in enumerate(tqdm(first.neurons, "gains", unit="layer", disable=not progress, delay=1)):
        bases = [state.readout.raw(state.neurons[row].stream) for state in states]
        scales = [
            _ratio(state.readout.gain, first.readout.gain) * _ratio(state.neurons[row].passage.gain, own.passage.gain)
            for state in states
        ]
        parts = []
        for which in torch.arange(len(own.rows)).split(at_once):
            rows = own.rows[which].to(first.readout.gain)
            logits = first.readout.linear(own.through(rows[None, None], 0)) @ first.readout.weight
            of_facts = []
            for state, base, scale in zip(states, bases, scales, strict=True):
                factors = scale * state.neurons[row].activations[0, which, None].to(logits)
                of_facts.append(state.said((logits * factors).add_(base)) - state.said(base))
            parts.append(torch.stack(of_facts))
        table.append(torch.cat(parts, dim=1))
    return torch.stack(_alike(table), dim=1)


def _ratio(one: Tensor | None, other: Tensor | None) -> float:
    """How many times the other this is."""
    if one is None or other is None:
        return 1.0
    return float((one * other).sum() / (other * other).sum())


def _alike(tables: list[Tensor]) -> list[Tensor]:
    if len(widths := {table.shape[-1] for table in tables}) > 1:
        raise ModelError(
            f"The MLPs differ in width between layers ({sorted(widths)}), so their neurons fill no one table. Give "
            "layers that are alike."
        )
    return tables


@torch.no_grad()
def _screened(state: State, n: int, at_once: int) -> tuple[Float[Tensor, "layer neuron"], Bool[Tensor, "layer neuron"]]:
    """Upper bounds of all gains, with the largest ``n`` made exact; and which are."""
    readout, factor = state.readout, state.readout.factor()
    if factor is None:
        raise ModelError(
            "screen: this architecture caps its logits, so that a gain may exceed its first-order estimate. Leave "
            "screen out."
        )
    bases = torch.cat([readout.raw(own.stream) for own in state.neurons])
    before, chances = state.said(bases), readout.transformed(bases).softmax(-1)
    slopes = factor * (readout.weight[:, state.answer] - chances @ readout.weight.T)
    bounds = torch.stack(_alike([
        readout.linear(own.at(0)) @ slope for own, slope in zip(state.neurons, slopes, strict=True)
    ]))  # fmt: skip
    width = bounds.shape[1]
    order = bounds.flatten().argsort(descending=True, stable=True)
    found, exact = bounds.flatten().clone(), torch.zeros(bounds.numel(), dtype=torch.bool, device=bounds.device)
    best = found.new_empty(0)
    for part in order.split(min(at_once, max(n, _FEW))):
        if len(best) >= n and best[n - 1] >= found[part[0]]:
            break
        groups = [(int(row), part[part // width == row]) for row in (part // width).unique()]
        vectors = torch.cat([readout.linear(state.neurons[row].at(0, own % width)) for row, own in groups])
        chosen = torch.cat([own for _, own in groups])
        rows = chosen // width
        found[chosen] = state.said((vectors @ readout.weight).add_(bases[rows])) - before[rows]
        exact[chosen] = True
        best = torch.cat([best, found[chosen]]).sort(descending=True).values[:n]
    return found.view_as(bounds), exact.view_as(bounds)


@torch.no_grad()
def _of_heads(
    states: Sequence[State], layers: Sequence[int], at_once: int
) -> Float[np.ndarray, "fact layer head source"]:
    """Gains of heads; NaN in layers without them, and where a prompt has no such position."""
    shapes = [own.vectors.shape for state in states for own in state.heads.values()]
    most = [max(sizes) for sizes in zip(*shapes, strict=True)][:2]
    table = np.full((len(states), len(layers), *most), np.nan, dtype=np.float32)
    for at, state in enumerate(states):
        for layer, own in state.heads.items():
            gains = state.gains(own.stream, own.vectors.flatten(0, 1), at_once).view(own.vectors.shape[:2])
            table[at, layers.index(layer), : gains.shape[0], : gains.shape[1]] = gains.cpu().numpy()
    return table
