"""ROME as published, written down literally: whole right-padded sequences through the whole model.

Nothing here uses the engine: it is the yardstick for ``edit.values`` and ``edit.methods.rome``.
Where the paper and its code differ it follows the paper: the drift is read at the end of "{subject} is a"
(the code reads it at the subject's last token), and ``steps`` counts updates (the code makes one fewer).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.requests import EditRequest
from edit.values import ValueObjective
from locate.prompts import encode_fact, encode_target


def optimise_value(
    model: TransformerBridge,
    request: EditRequest,
    prefixes: Sequence[str],
    layer: int,
    objective: ValueObjective,
) -> tuple[Float[Tensor, "d_model"], list[float]]:
    """v* and the losses on the way, by one whole forward and backward pass of all rows per step.

    >>> value, losses = optimise_value(model, request, ["", "I am here. "], 5, ValueObjective())
    >>> value.shape
    torch.Size([576])
    """
    rows, sites, ends, target = _rows(model, request, prefixes)
    device = next(model.original_model.parameters()).device
    length = max(len(row) for row in rows)
    tokens = torch.stack([F.pad(row, (0, length - len(row))) for row in rows]).to(device)
    mask = torch.stack([torch.arange(length) < len(row) for row in rows]).long().to(device)
    initial = _states(model, rows[0], layer, sites[0])[1].float()
    delta = torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=objective.learning_rate)

    def add(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        for row, site in enumerate(sites):
            value[row, site] += delta.to(value)
        return value

    losses: list[float] = []
    undisturbed: Tensor | None = None
    for step in range(objective.steps + 1):
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.out.hook_out", add)]):
            scores = model(tokens, attention_mask=mask).float().log_softmax(-1)
        nll = torch.stack([-scores[i, ends[i] + j, t] for i in range(len(prefixes)) for j, t in enumerate(target)])
        firsts = [
            bool(scores[i, ends[i] + j].argmax() == t) for i in range(len(prefixes)) for j, t in enumerate(target)
        ]
        essence = scores[-1, ends[-1]]
        undisturbed = essence.detach() if undisturbed is None else undisturbed
        drift = (essence.exp() * (essence - undisturbed)).sum()
        decay = delta.norm() / initial.norm() ** 2
        loss = nll.mean() + objective.kl_weight * drift + objective.weight_decay * decay
        losses.append(float(loss.detach()))
        if objective.stop == "loss" and loss < objective.loss_threshold:
            break
        if objective.stop == "first" and all(firsts) and (-nll.mean()).exp() >= objective.probability:
            break
        if step == objective.steps:
            break
        optimiser.zero_grad()
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        optimiser.step()
        with torch.no_grad():
            largest = objective.clamp * initial.norm()
            if delta.norm() > largest:
                delta *= largest / delta.norm()
    return (initial + delta).detach(), losses


def rome_delta(
    model: TransformerBridge,
    request: EditRequest,
    prefixes: Sequence[str],
    layer: int,
    objective: ValueObjective,
    second_moment: Float[Tensor, "d_mlp d_mlp"],
    *,
    original: bool = False,
) -> Float[Tensor, "d_model d_mlp"]:
    """Δ = (v* − W k) uᵀ / (kᵀu) with u = C⁻¹k̄, by an explicit inverse in float64.

    ``original`` takes k from the bare prompt, as the published code does; otherwise k is the mean key k̄.

    >>> rome_delta(model, request, [""], 5, ValueObjective(), statistics.second_moment).shape
    torch.Size([576, 1536])
    """
    value, _ = optimise_value(model, request, prefixes, layer, objective)
    rows, sites, _, _ = _rows(model, request, prefixes)
    states = [_states(model, row, layer, site) for row, site in zip(rows[:-1], sites[:-1], strict=True)]
    keys = torch.stack([key for key, _ in states]).double().cpu()
    outputs = torch.stack([output for _, output in states]).double().cpu()
    u = torch.linalg.inv(second_moment.double()) @ keys.mean(0)
    key, output = (keys[0], outputs[0]) if original else (keys.mean(0), outputs.mean(0))
    return torch.outer(value.double().cpu() - output, u) / (key @ u)


def _rows(
    model: TransformerBridge, request: EditRequest, prefixes: Sequence[str]
) -> tuple[list[Int[Tensor, "_"]], list[int], list[int], list[int]]:
    """Token rows, last position of the subject and of the prompt in each, and the target's ids."""
    target = encode_target(model, request.fact.text, request.target_new)
    prompts = [encode_fact(model, request.fact, prefix=prefix) for prefix in prefixes]
    essence = encode_fact(model, request.fact, template="{} is a")
    rows = [*(torch.cat([prompt.tokens, target[:-1]]) for prompt in prompts), essence.tokens]
    everything = [*prompts, essence]
    sites = [prompt.last_subject_position for prompt in everything]
    return rows, sites, [len(prompt.tokens) - 1 for prompt in everything], target.tolist()


def _states(
    model: TransformerBridge, row: Int[Tensor, "position"], layer: int, site: int
) -> tuple[Float[Tensor, "d_mlp"], Float[Tensor, "d_model"]]:
    """Input and output of the layer's down-projection at one position of one unpadded row."""
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object, name: str) -> None:
        seen[name] = value[0, site].detach()

    names = [f"blocks.{layer}.mlp.out.hook_in", f"blocks.{layer}.mlp.out.hook_out"]
    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    device = next(model.original_model.parameters()).device
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(row[None].to(device))
    return seen[names[0]], seen[names[1]]
