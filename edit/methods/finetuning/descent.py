"""Training one down-projection on several answers at once: only what stands above it runs again at each step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from edit.values.contexts import Contexts
from locate.engine import Added, Branch, FrozenRun, freeze
from locate.engine.rows import Budget, Extent, padded, passes
from locate.errors import NumericsError
from locate.model.parameters import frozen_parameters
from locate.model.running import running
from locate.sites.table import hook_name

# In nats: training whose loss has risen by more has gone too far at every step, and is no edit.
_DIVERGED = 1.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """How steps are taken.

    Attributes:
        steps: at most.
        learning_rate: of Adam.
        limit: the most that any entry of the matrix may change.
        enough: the mean loss below which no further step is taken.
    """

    steps: int
    learning_rate: float
    limit: float | None
    enough: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What was found.

    Attributes:
        delta: the change of the matrix.
        losses: by request, the mean NLL per token of its new target before each step and after the last.
    """

    delta: Float[Tensor, "d_model d_mlp"]
    losses: tuple[tuple[float, ...], ...]


def train(
    model: TransformerBridge, contexts: Sequence[Contexts], layer: int, how: Training, *, budget: int,
    progress: bool = False,
) -> Trained:  # fmt: skip
    """Lower the mean NLL of the new targets after their bare prompts, by Adam on one layer's down-projection.

    What the layer's MLP reads does not depend on its own down-projection, so the texts are run once, and each step
    adds Δ·k to what the layer gives at every position.

    Raises:
        NumericsError: a loss is not finite, or ends above where it began.
    """
    extents = [Extent(length=len(one.asking[0].tokens), readouts=len(one.target)) for one in contexts]
    together = passes(extents, Budget.of(model, budget), gradients=True)
    groups = [_Group.of(model, [contexts[index] for index in own], layer, budget) for own in together]
    order = torch.tensor([index for own in together for index in own]).argsort()
    width, size = model.cfg.d_model, groups[0].keys.shape[-1]
    delta = torch.zeros(width, size, device=groups[0].keys.device, dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=how.learning_rate)
    losses: list[Tensor] = []
    with running(model, grad=True), frozen_parameters(model):
        for step in tqdm(range(how.steps + 1), "fine-tuning", disable=not progress, delay=1):
            optimiser.zero_grad()
            each = []
            for group in groups:
                own = group.losses(delta)
                if step < how.steps:
                    (own.sum() / len(contexts)).backward()
                each.append(own.detach().cpu())
            losses.append(torch.cat(each)[order])
            _check(losses, contexts, layer)
            if step == how.steps or float(losses[-1].mean()) < how.enough:
                break
            optimiser.step()
            if how.limit is not None:
                with torch.no_grad():
                    delta.clamp_(-how.limit, how.limit)
    _check_descent(losses, layer)
    return Trained(delta=delta.detach().cpu(), losses=tuple(tuple(own) for own in torch.stack(losses, 1).tolist()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Requests whose texts go through the model together, filled up on the right."""

    run: FrozenRun
    layer: int
    keys: Float[Tensor, "row position d_mlp"]
    at: tuple[Int[Tensor, "readout"], Int[Tensor, "readout"]]
    targets: Int[Tensor, "readout"]

    @classmethod
    def of(cls, model: TransformerBridge, contexts: Sequence[Contexts], layer: int, budget: int) -> "_Group":
        name, bare = hook_name("down_in", layer), [one.asking[0] for one in contexts]
        sizes = torch.tensor([len(one.target) for one in contexts])
        columns = [row.end + torch.arange(len(one.target)) for row, one in zip(bare, contexts, strict=True)]
        run = freeze(model, padded([row.tokens for row in bare]), keep=[name], budget=budget)
        return cls(
            run=run, layer=layer, keys=run.kept[name].float(), targets=torch.cat([one.target for one in contexts]),
            at=(torch.arange(len(contexts)).repeat_interleave(sizes), torch.cat(columns)),
        )  # fmt: skip

    def losses(self, delta: Tensor) -> Float[Tensor, "request"]:
        """Of each request, the mean over its target's tokens."""
        branch = Branch(
            layer=self.layer, rows=torch.arange(len(self.keys)), states=self.run.residuals[self.layer],
            interventions={hook_name("down_out", self.layer): Added(values=self.keys @ delta.T)},
        )  # fmt: skip
        logits = self.run.resume(0, [branch], at=self.at, grad=True).float()
        each, owners = F.cross_entropy(logits, self.targets.to(logits.device), reduction="none"), self.at[0]
        total = each.new_zeros(len(self.keys)).index_add(0, owners.to(each.device), each)
        return total / torch.bincount(owners).to(total)


def _check(losses: Sequence[Tensor], contexts: Sequence[Contexts], layer: int) -> None:
    for context, loss in zip(contexts, losses[-1].tolist(), strict=True):
        if not -float("inf") < loss < float("inf"):
            raise NumericsError(
                f"{context.label}: the loss is {loss} at step {len(losses) - 1} of fine-tuning layer {layer}; nothing "
                "was changed. Lower the learning rate, or load the model in float32."
            )


def _check_descent(losses: Sequence[Tensor], layer: int) -> None:
    first, last = (float(losses[place].mean()) for place in (0, -1))
    if last > first + _DIVERGED:
        raise NumericsError(
            f"Fine-tuning layer {layer} diverges: the mean loss is {last:.3g} after {len(losses) - 1} steps, "
            f"{first:.3g} at first; nothing was changed. Lower the learning rate."
        )
