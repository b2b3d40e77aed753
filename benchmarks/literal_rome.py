"""ROME as published, written down literally: whole right-padded sequences through the whole model.

Nothing here uses the engine: it is the yardstick for ``edit.values.optimisation`` and ``edit.methods.rewriting.rome``.
What they have beyond the publication, the answer's end and openings, is there where it is asked for. Where the paper
and its code differ it follows the paper: the drift is read at the end of "{subject} is a" (the code reads it at the
subject's last token), and ``steps`` counts updates (the code makes one fewer).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.requests.requests import EditRequest
from edit.values.contexts import Openings
from edit.values.objective import ValueObjective
from locate.facts.prompts import encode_fact, encode_target


def optimise_value(
    model: TransformerBridge,
    request: EditRequest,
    prefixes: Sequence[str],
    layer: int,
    objective: ValueObjective,
    place: str = "mlp",
    openings: Openings = (),
) -> tuple[Float[Tensor, "d_model"], list[float]]:
    """v* and the losses on the way, by one whole forward and backward pass of all rows per step.

    ``place`` is ``"mlp"`` as in ROME, ``"resid"`` as in MEMIT, or ``"attn+mlp"`` as in PMET (whose value is the MLP's).
    An answer that shall end (``objective.end``) has one more token in every text: any of those that end it.

    >>> value, losses = optimise_value(model, request, ["", "I am here. "], 5, ValueObjective())
    >>> value.shape
    torch.Size([576])
    """
    endings = ending_tokens(model) if objective.end > 0 else []
    rows, sites, ends, target = text_rows(model, request, prefixes, openings, ends=bool(endings))
    askers = range(len(rows) - 1)
    device = next(model.original_model.parameters()).device
    length = max(len(row) for row in rows)
    tokens = torch.stack([F.pad(row, (0, length - len(row))) for row in rows]).to(device)
    mask = torch.stack([torch.arange(length) < len(row) for row in rows]).long().to(device)
    names = {
        "mlp": [f"blocks.{layer}.mlp.out.hook_out"],
        "resid": [f"blocks.{layer}.hook_resid_post"],
        "attn+mlp": [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.mlp.out.hook_out"],
    }[place]
    initials = [state_at(model, rows[0], name, sites[0]).float() for name in names]
    deltas = [torch.zeros_like(initial, requires_grad=True) for initial in initials]
    optimiser = torch.optim.Adam(deltas, lr=objective.learning_rate)

    def add(value: Tensor, hook: object, index: int) -> Tensor:
        value = value.clone()
        for row, site in enumerate(sites):
            value[row, site] += deltas[index].to(value)
        return value

    hooks = [(name, lambda value, hook, i=i: add(value, hook, i)) for i, name in enumerate(names)]

    losses: list[float] = []
    undisturbed: Tensor | None = None
    for step in range(objective.steps + 1):
        with model.hooks(fwd_hooks=hooks):
            scores = model(tokens, attention_mask=mask).float().log_softmax(-1)
        nll = torch.stack([-scores[i, ends[i] + j, t] for i in askers for j, t in enumerate(target)])
        firsts = [bool(scores[i, ends[i] + j].argmax() == t) for i in askers for j, t in enumerate(target)]
        ending = [-scores[i, ends[i] + len(target), endings].logsumexp(0) for i in askers if endings]
        ended = not ending or (-torch.stack(ending).mean()).exp() >= objective.end
        essence = scores[-1, ends[-1]]
        undisturbed = essence.detach() if undisturbed is None else undisturbed
        drift = (essence.exp() * (essence - undisturbed)).sum()
        decay = torch.stack([d.norm() / i.norm() ** 2 for d, i in zip(deltas, initials, strict=True)]).sum()
        loss = torch.stack([*nll, *ending]).mean() + objective.kl_weight * drift + objective.weight_decay * decay
        losses.append(float(loss.detach()))
        if objective.stop == "loss" and loss < objective.loss_threshold:
            break
        likely = ended and (-nll.mean()).exp() >= objective.probability
        if objective.stop == "first" and all(firsts) and likely:
            break
        if step == objective.steps:
            break
        optimiser.zero_grad()
        for delta, gradient in zip(deltas, torch.autograd.grad(loss, deltas), strict=True):
            delta.grad = gradient
        optimiser.step()
        with torch.no_grad():
            for delta, initial in zip(deltas, initials, strict=True):
                largest = objective.clamp * initial.norm()
                if delta.norm() > largest:
                    delta *= largest / delta.norm()
    return (initials[-1] + deltas[-1]).detach(), losses


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

    ``original`` takes k from the bare prompt and k̄ as the plain mean, as the published code does; otherwise k is k̄,
    and the bare prompt counts as much as all prefixes.

    >>> rome_delta(model, request, [""], 5, ValueObjective(), statistics.second_moment).shape
    torch.Size([576, 1536])
    """
    value, _ = optimise_value(model, request, prefixes, layer, objective)
    rows, sites, _, _ = text_rows(model, request, prefixes)
    places = list(zip(rows[:-1], sites[:-1], strict=True))
    projection = f"blocks.{layer}.mlp.out"
    keys = torch.stack([state_at(model, row, f"{projection}.hook_in", s) for row, s in places]).double().cpu()
    outputs = torch.stack([state_at(model, row, f"{projection}.hook_out", s) for row, s in places]).double().cpu()
    mean = keys.mean(0) if original else halved_mean(keys)
    u = torch.linalg.inv(second_moment.double()) @ mean
    key, output = (keys[0], outputs[0]) if original else (mean, halved_mean(outputs))
    return torch.outer(value.double().cpu() - output, u) / (key @ u)


def halved_mean(rows: Float[Tensor, "prefix d"]) -> Float[Tensor, "d"]:
    """Of the bare prompt, and of the mean under prefixes."""
    return rows[0] if len(rows) == 1 else (rows[0] + rows[1:].mean(0)) / 2


def ending_tokens(model: TransformerBridge) -> list[int]:
    """Every token that is a mark after which no word goes on, and the one that ends a text.

    >>> model.tokenizer.eos_token_id in ending_tokens(model)
    True
    """
    marks = {*".,;:!?)\n", *"。，、；：！？）", *"،؛؟۔।"}
    everything = range(len(model.tokenizer))
    return [i for i in everything if i == model.tokenizer.eos_token_id or model.tokenizer.decode([i]) in marks]


def text_rows(
    model: TransformerBridge, request: EditRequest, prefixes: Sequence[str], openings: Openings = (), *,
    ends: bool = False,
) -> tuple[list[Int[Tensor, "_"]], list[int], list[int], list[int]]:  # fmt: skip
    """Token rows, last position of the subject and of the prompt in each, and the target's ids.

    The target's last token is there where the answer ``ends``, since its end follows it.
    """
    fact = request.fact
    target = encode_target(model, fact.text, request.target_new)
    restated = [text + fact.prompt.replace("{}", word) for text, word in openings]
    prompts = [encode_fact(model, fact, prefix=prefix) for prefix in prefixes]
    prompts += [encode_fact(model, fact, template=template) for template in restated]
    essence = encode_fact(model, fact, template="{} is a")
    given = target if ends else target[:-1]
    rows = [*(torch.cat([prompt.tokens, given]) for prompt in prompts), essence.tokens]
    everything = [*prompts, essence]
    sites = [prompt.last_subject_position for prompt in everything]
    return rows, sites, [len(prompt.tokens) - 1 for prompt in everything], target.tolist()


def state_at(model: TransformerBridge, row: Int[Tensor, "position"], name: str, site: int) -> Float[Tensor, "d"]:
    """The state at a hook point and one position of one unpadded row, from a whole pass."""
    seen: list[Tensor] = []
    device = next(model.original_model.parameters()).device
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook: seen.append(value[0, site].detach()))]):
        model(row[None].to(device))
    return seen[0]
