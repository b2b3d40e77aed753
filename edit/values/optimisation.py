"""Finding the values v* that make the model say the new objects, for many requests at once."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from edit.values.contexts import AlignedContexts, Contexts, align_contexts
from edit.values.objective import Place, Value, ValueObjective
from edit.values.progress import StepBar
from locate.engine import DEFAULT_BUDGET, Branch, Shift, freeze
from locate.engine.reach import reaching_layers
from locate.engine.rows import Budget, passes
from locate.errors import NumericsError
from locate.model.parameters import frozen_parameters
from locate.model.precision import Precision, computing_in
from locate.model.running import running
from locate.sites.table import hook_name

# In nats: a value whose loss has risen by more has been overshot at every step, and is no edit.
_DIVERGED = 1.0

# A value that makes its object, or that the answer ends there, less likely than not when the steps are over has missed.
_REACHED = 0.5


def optimise_value(
    model: TransformerBridge, contexts: Contexts, layer: int, objective: ValueObjective, *,
    place: Place = "mlp", budget: int = DEFAULT_BUDGET, precision: Precision = "model",
) -> Value:  # fmt: skip
    """The value of one request; see ``optimise_values``."""
    return optimise_values(model, [contexts], layer, objective, place=place, budget=budget, precision=precision)[0]


def optimise_values(
    model: TransformerBridge,
    contexts: Sequence[Contexts],
    layer: int,
    objective: ValueObjective,
    *,
    place: Place = "mlp",
    budget: int = DEFAULT_BUDGET,
    precision: Precision = "model",
    progress: bool | StepBar = False,
) -> list[Value]:
    """Find, for each request by itself, what a layer must give at the site to make the new target likely.

    Minimises mean NLL(o*) + λ·KL at ``"{subject} is a"`` + wd·‖δ‖/‖v₀‖² by Adam. Requests are optimised side by
    side, each exactly as if it were alone: the rows are run once up to the site, each step resumes from there,
    and a request that has converged leaves the batch.

    Args:
        model: a raw-mode bridge.
        contexts: of each request.
        layer: where to change the state.
        objective: what to minimise, and when to stop.
        place: of the change.
        budget: the most tokens in one pass, an eighth of it where gradients are kept.
        precision: of the steps' matrix products.
        progress: whether to show a bar, or that of a longer job, which is moved on.

    Raises:
        NumericsError: a loss is not finite, or ends above where it began; the message names the request and the step.
    """
    values: dict[int, Value] = {}
    with _bar(progress, len(contexts), objective.steps) as bar:
        for group in passes([one.extent for one in contexts], Budget.of(model, budget), gradients=True):
            own = [contexts[index] for index in group]
            # The first pass in the model's own precision: under bfloat16 the mask of padding would overflow to −∞ and
            # leave padded rows nothing to attend to.
            optimisation = _Optimisation(model, own, layer, objective, place, budget)
            with computing_in(precision, model):
                found = optimisation.run(bar)
            values |= dict(zip(group, found, strict=True))
    return [values[index] for index in range(len(contexts))]


def _bar(progress: bool | StepBar, requests: int, steps: int) -> AbstractContextManager[StepBar]:
    if isinstance(progress, StepBar):
        return nullcontext(progress)
    return StepBar(requests=requests, steps=steps, shown=progress)


class Reached(NamedTuple):
    """What a request has reached at a step.

    Attributes:
        loss: its objective.
        first: whether the new object is the first answer in every context.
        probability: of the new object, as a geometric mean over contexts and tokens.
        end: that the answer ends there, likewise; 1 where it need not.
    """

    loss: float
    first: bool
    probability: float
    end: float


class _Optimisation:
    """One group of requests on its way to their values."""

    def __init__(
        self, model: TransformerBridge, contexts: Sequence[Contexts], layer: int, objective: ValueObjective,
        place: Place, budget: int,
    ) -> None:  # fmt: skip
        self.model, self.contexts, self.layer, self.objective = model, contexts, layer, objective
        self.place: Place = place
        self.joint = align_contexts(contexts)
        keep = {
            "mlp": ["down_out"],
            "attn+mlp": ["attn_out", "down_out"],
            "resid": ["mlp_out"],
        }[place]
        keep = [hook_name(name, layer) for name in keep]
        self.frozen = freeze(
            model, self.joint.tokens, attention_mask=self.joint.attention_mask, budget=budget,
            keep=[*dict.fromkeys([*keep, hook_name("down_in", layer), hook_name("down_out", layer)])],
        )  # fmt: skip
        # The bare prompt is the first row of each request.
        self.bare = torch.tensor([int((self.joint.owner < i).sum()) for i in range(len(contexts))])
        if place == "resid":
            self.initial = self._at_site(self.frozen.residuals[layer + 1], self.bare)[:, None]
        else:
            self.initial = torch.stack([self._at_site(self.frozen.kept[name], self.bare) for name in keep], dim=1)
        self.hooks = [] if place == "resid" else keep
        self.written = self._at_site(self.frozen.kept[keep[-1]], self.bare)
        self.deltas = [torch.zeros_like(own, requires_grad=True) for own in self.initial]
        self.losses: list[list[float]] = [[] for _ in contexts]
        self.stopped = [f"after {objective.steps} steps"] * len(contexts)
        self.reached: dict[int, Reached] = {}
        self.converged: set[int] = set()

    def run(self, bar: StepBar) -> list[Value]:
        """Take the steps, and give what was found."""
        optimiser = torch.optim.Adam(self.deltas, lr=self.objective.learning_rate)
        active = torch.arange(len(self.contexts))
        undisturbed: Tensor | None = None
        with running(self.model, grad=True), frozen_parameters(self.model):
            for step in range(self.objective.steps + 1):
                rows, joint = self.joint.only(active)
                readouts, ends, essences = self._logits(rows, joint, active)
                scores = essences.float().log_softmax(-1)
                if undisturbed is None:
                    undisturbed = scores.detach()
                targets = joint.targets.to(readouts.device)
                each = F.cross_entropy(readouts.float(), targets, reduction="none")
                ending = -_log_chance(ends.float().log_softmax(-1), joint.endings[joint.enders])
                nll = _mean_by(torch.cat([each, ending]), torch.cat([joint.askers, joint.enders]), len(active))
                drift = F.kl_div(undisturbed[active], scores, log_target=True, reduction="none").sum(-1)
                loss = nll + self.objective.kl_weight * drift + self._decay(active).to(nll.device)
                self._check(loss, active, step)
                first = _mean_by((readouts.argmax(-1) == targets).float(), joint.askers, len(active)) == 1
                likely = (-_mean_by(each, joint.askers, len(active))).exp()
                ended = (-_mean_by(ending, joint.enders, len(active))).exp()
                reached = zip(loss.tolist(), first.tolist(), likely.tolist(), ended.tolist(), strict=True)
                now = [Reached(*one) for one in reached]
                self.reached |= dict(zip(active.tolist(), now, strict=True))
                going = torch.tensor([not self._stops(i, one) for i, one in zip(active.tolist(), now, strict=True)])
                bar.spare((self.objective.steps - step) * int((~going).sum()))
                if step == self.objective.steps or not going.any():
                    break
                own = [self.deltas[i] for i in active.tolist()]
                gradients = torch.autograd.grad(loss.sum(), own)
                if step == 0:
                    self._check_reached(active, gradients)
                for delta in self.deltas:
                    delta.grad = None  # a request that has stopped is left where it is
                for delta, gradient, goes in zip(own, gradients, going.tolist(), strict=True):
                    delta.grad = gradient if goes else None
                optimiser.step()
                active = active[going]
                self._clamp(active)
                bar.step(len(active))
        self._check_descent()
        return [self._value(index) for index in range(len(self.contexts))]

    def _logits(self, rows: Tensor, joint: AlignedContexts, active: Tensor) -> tuple[Tensor, ...]:
        """Logits at the readouts, where answers shall end, and at the essences, with every request's δ in place."""
        site = self.joint.site
        deltas = torch.stack([self.deltas[i] for i in active.tolist()])[joint.owner]
        if self.place == "resid":
            states = self.frozen.residuals[self.layer + 1][rows, site:]
            shifted = states[:, :1] + deltas.to(states)
            branch = Branch(layer=self.layer + 1, rows=rows, states=torch.cat([shifted, states[:, 1:]], dim=1))
        else:
            branch = Branch(
                layer=self.layer, rows=rows, states=self.frozen.residuals[self.layer][rows, site:],
                interventions={name: Shift(values=deltas[:, i]) for i, name in enumerate(self.hooks)},
            )  # fmt: skip
        parts = (joint.readouts, joint.ends, joint.essences)
        at = (torch.cat([rows for rows, _ in parts]), torch.cat([columns for _, columns in parts]))
        logits = self.frozen.resume(site, [branch], at=at, grad=True)
        return logits.split([len(rows) for rows, _ in parts])

    def _decay(self, active: Tensor) -> Tensor:
        own = torch.stack([self.deltas[i] for i in active.tolist()])
        return self.objective.weight_decay * (own.norm(dim=-1) / self.initial[active].norm(dim=-1) ** 2).sum(-1)

    @torch.no_grad()
    def _clamp(self, active: Tensor) -> None:
        for i in active.tolist():
            delta, limit = self.deltas[i], self.objective.clamp * self.initial[i].norm(dim=-1, keepdim=True)
            delta.mul_(torch.clamp(limit / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12), max=1.0))

    def _check(self, loss: Tensor, active: Tensor, step: int) -> None:
        for i, one in zip(active.tolist(), loss.tolist(), strict=True):
            self.losses[i].append(one)
            if not -float("inf") < one < float("inf"):
                raise NumericsError(
                    f"{self._named(i)}The value's loss is {one} at step {step} in layer {self.layer}; "
                    "nothing was changed. Lower the learning rate, or load the model in float32."
                )

    def _check_reached(self, active: Tensor, gradients: Sequence[Tensor]) -> None:
        for i, gradient in zip(active.tolist(), gradients, strict=True):
            if not gradient.any():
                reaching = reaching_layers(self.model)
                above = self.layer not in reaching
                raise NumericsError(
                    f"{self._named(i)}What layer {self.layer} gives at the subject's last token reaches "
                    "no answer, so no value there can change one; nothing was changed. "
                    + (f"From layer {reaching.stop} on this model reads nothing of earlier tokens' states. " * above)
                    + "Choose an earlier layer."
                )

    def _check_descent(self) -> None:
        for index, losses in enumerate(self.losses):
            if losses[-1] > losses[0] + _DIVERGED:
                lowest = min(range(len(losses)), key=losses.__getitem__)
                raise NumericsError(
                    f"{self._named(index)}The value's optimisation in layer {self.layer} "
                    f"diverges: its loss is {losses[-1]:.3g} after {len(losses) - 1} steps, {losses[0]:.3g} at first "
                    f"and {losses[lowest]:.3g} at step {lowest}; nothing was changed. Lower the learning rate."
                )

    def _named(self, index: int) -> str:
        """How a message about a request begins."""
        label = self.contexts[index].label
        return f"{label}: " if label else ""

    def _stops(self, index: int, now: Reached) -> bool:
        objective = self.objective
        likely = now.probability >= objective.probability and now.end >= objective.end
        if objective.stop == "loss" and now.loss < objective.loss_threshold:
            self.stopped[index] = f"loss below {objective.loss_threshold}"
        elif objective.stop == "first" and now.first and likely:
            self.stopped[index] = "the new object is first under every prefix"
        else:
            return False
        self.converged.add(index)
        return True

    def _value(self, index: int) -> Value:
        rows = self.bare[index] + torch.arange(len(self.contexts[index].asking))
        reached = self.reached[index]
        initial, delta = self.initial[index, -1], self.deltas[index].detach()[-1]
        return Value(
            value=initial + delta, initial=initial, written=self.written[index],
            keys=self._at_site(self.frozen.kept[hook_name("down_in", self.layer)], rows).cpu(),
            outputs=self._at_site(self.frozen.kept[hook_name("down_out", self.layer)], rows).cpu(),
            losses=tuple(self.losses[index]), stopped=self.stopped[index], probability=reached.probability,
            end=reached.end, missed=index not in self.converged and min(reached.probability, reached.end) < _REACHED,
            layer=self.layer, place=self.place, label=self.contexts[index].label,
        )  # fmt: skip

    def _at_site(self, states: Tensor, rows: Tensor) -> Tensor:
        return states[rows.to(states.device), self.joint.site].float()


def _log_chance(scores: Tensor, tokens: Tensor) -> Tensor:
    """Of one among several tokens, where -1 is none."""
    tokens = tokens.to(scores.device)
    return scores.gather(1, tokens.clamp_min(0)).masked_fill(tokens < 0, -torch.inf).logsumexp(-1)


def _mean_by(values: Tensor, groups: Tensor, n: int) -> Tensor:
    """The mean of each group's values, 0 where it has none."""
    groups = groups.to(values.device)
    counts = torch.bincount(groups, minlength=n).clamp_min(1)
    return values.new_zeros(n).index_add(0, groups, values) / counts
