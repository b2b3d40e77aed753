"""Finding the value v* that makes the model say the new object."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.contexts import ContextBatch
from edit.hooks import key_hook, value_hook
from locate.engine import DEFAULT_BUDGET, Branch, freeze
from locate.errors import NumericsError
from locate.parameters import frozen_parameters

StopRule = Literal["loss", "first"]


@dataclass(frozen=True, kw_only=True)
class ValueObjective:
    """How a value is optimised: ROME's objective and defaults (Meng et al. 2022, arXiv:2202.05262), stopped early.

    Args:
        steps: the most gradient steps.
        learning_rate: of Adam.
        kl_weight: weight of the drift of ``"{subject} is a"``.
        weight_decay: weight of ‖δ‖ / ‖v₀‖².
        clamp: the largest ‖δ‖, in units of ‖v₀‖.
        stop: ``"first"`` (default) stops as soon as the new object is the first answer under every prefix,
            with at least ``probability`` on average. ``"loss"`` stops below ``loss_threshold``, as published.
        loss_threshold: for ``stop="loss"``.
        probability: for ``stop="first"``: the geometric mean over prefixes to reach.

    >>> ValueObjective(steps=20).learning_rate
    0.2
    """

    steps: int = 40
    learning_rate: float = 0.2
    kl_weight: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0
    stop: StopRule = "first"
    loss_threshold: float = 0.05
    probability: float = 0.9

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "clamp"):
            if not getattr(self, name) > 0:
                raise NumericsError(f"{name}: must be positive, found {getattr(self, name)}.")
        if self.stop not in get_args(StopRule):
            raise NumericsError(f"stop: must be one of {', '.join(get_args(StopRule))}, found {self.stop!r}.")
        if not 0 <= self.probability < 1:
            raise NumericsError(f"probability: must be at least 0 and below 1, found {self.probability}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """An optimised value, with the keys at which it must be written.

    Attributes:
        value: v* = v₀ + δ, the wanted output of the down-projection at the site.
        initial: v₀, its output there under the bare prompt.
        keys: the down-projection's input there, under each prefix (the bare prompt first).
        outputs: its output there, under each prefix.
        losses: the objective at every evaluation.
        stopped: why the optimisation ended.
    """

    value: Float[Tensor, "d_model"]
    initial: Float[Tensor, "d_model"]
    keys: Float[Tensor, "prefix d_mlp"]
    outputs: Float[Tensor, "prefix d_model"]
    losses: tuple[float, ...]
    stopped: str


def optimise_value(
    model: TransformerBridge,
    contexts: ContextBatch,
    layer: int,
    objective: ValueObjective,
    *,
    budget: int = DEFAULT_BUDGET,
) -> Value:
    """Find the down-projection output at (layer, site) that makes the new target likely under all prefixes.

    Minimises mean NLL(o*) + λ·KL at ``"{subject} is a"`` + wd·‖δ‖/‖v₀‖² by Adam. The rows are run once
    up to the site; each step resumes from there.

    Raises:
        NumericsError: the loss is not finite.
    """
    run = freeze(
        model, contexts.tokens, attention_mask=contexts.attention_mask,
        keep=[key_hook(layer), value_hook(layer)], budget=budget,
    )  # fmt: skip
    site, n = contexts.site, contexts.n_prefixes
    keys = run.kept[key_hook(layer)][:n, site].float()
    outputs = run.kept[value_hook(layer)][:n, site].float()
    initial = outputs[0]
    target = contexts.target.to(run.logits.device).repeat(n)
    branch = Branch(layer=layer, rows=torch.arange(n + 1), states=run.residuals[layer][:, site:])
    row, column = contexts.essence
    at = (
        torch.cat([contexts.readouts[0], torch.tensor([row])]),
        torch.cat([contexts.readouts[1], torch.tensor([column])]),
    )
    delta = torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=objective.learning_rate)
    limit = objective.clamp * initial.norm()

    suffix = contexts.tokens.shape[1] - site

    def shift(value: Tensor, hook: object = None) -> Tensor:
        # Counted from the end: an architecture that cannot be resumed runs whole sequences.
        before, at_site, after = value.tensor_split((value.shape[1] - suffix, value.shape[1] - suffix + 1), dim=1)
        return torch.cat([before, at_site + delta.to(value), after], dim=1)

    undisturbed: Tensor | None = None
    losses: list[float] = []
    stopped = f"after {objective.steps} steps"
    with frozen_parameters(model):
        for step in range(objective.steps + 1):
            logits = run.resume(site, [branch], hooks=[(value_hook(layer), shift)], at=at, grad=True)
            scores = logits.to(target.device).float().log_softmax(-1)
            if undisturbed is None:
                undisturbed = scores[-1].detach()
            nll = F.nll_loss(scores[:-1], target)
            drift = F.kl_div(undisturbed, scores[-1], log_target=True, reduction="sum")
            decay = (delta.norm() / initial.norm() ** 2).to(nll.device)
            loss = nll + objective.kl_weight * drift + objective.weight_decay * decay
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise NumericsError(
                    f"The value's loss is {losses[-1]} at step {step} in layer {layer}; nothing was changed. "
                    "Lower the learning rate, or load the model in float32."
                )
            if reason := _reason_to_stop(objective, loss.detach(), nll.detach(), scores[:-1].detach(), target):
                stopped = reason
                break
            if step == objective.steps:
                break
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            optimiser.step()
            with torch.no_grad():
                delta.mul_(torch.clamp(limit / delta.norm().clamp_min(1e-12), max=1.0))
    return Value(
        value=(initial + delta).detach(), initial=initial, keys=keys, outputs=outputs, losses=tuple(losses),
        stopped=stopped,
    )  # fmt: skip


def _reason_to_stop(objective: ValueObjective, loss: Tensor, nll: Tensor, scores: Tensor, target: Tensor) -> str:
    if objective.stop == "loss":
        return f"loss below {objective.loss_threshold}" if loss < objective.loss_threshold else ""
    if bool((scores.argmax(-1) == target).all()) and float(nll.exp().reciprocal()) >= objective.probability:
        return "the new object is first under every prefix"
    return ""
