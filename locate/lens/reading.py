"""How the stream at one place reaches an answer's logit: a linear map, with the final norm's scale as it is there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.model.norms import NormShape
from locate.model.running import running

# By how much two equal logits are moved apart to find the slope of a cap between them.
_STEP = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How a final stream reaches a logit, or the difference of two.

    What the architecture does to logits after the unembedding, a scale or a cap, is a factor here: the logit over what
    it was before, and of two logits their difference over what it was before. So it is for a scale, whatever is read;
    a cap has another factor at each place, and the same one for all parts of the stream.

    Attributes:
        direction: from the stream to the logit before scale or cap.
        constant: what the biases of final norm and unembedding add to it.
        factor: of scale or cap.
    """

    direction: Float[Tensor, "d_model"]
    constant: float
    factor: float

    @property
    def bias(self) -> float:
        """What is added whatever is in the stream."""
        return self.constant * self.factor


@torch.no_grad()
def reading(model: TransformerBridge, stream: Float[Tensor, "d_model"], answer: int, other: int | None) -> Reading:
    """How a stream before the final norm reaches logit(answer), or logit(answer) − logit(other).

    Raises:
        ModelError: the final norm is no scale with a gain and a shift.

    >>> stream = torch.ones(model.cfg.d_model)
    >>> reading(model, stream, 7, 8).factor
    1.0
    """
    given = stream[None, None]
    normed = model.ln_final(given)
    shape = NormShape.of(model.ln_final, given)
    gain, shift = shape.scaled(given, normed).double().flatten(), shape.shift.double().flatten()
    tokens = [answer] if other is None else [answer, other]
    directions, constants, before = [], [], []
    for token, weight in zip(tokens, _weights(model, normed, tokens), strict=True):
        direction = gain * weight
        if shape.centred:
            direction = direction - direction.mean()
        bias = model.unembed(torch.zeros_like(normed))[0, 0, token].double()
        directions.append(direction)
        constants.append(float(shift @ weight + bias))
        before.append(float(direction @ stream.to(direction)) + constants[-1])
    first, *rest = directions
    return Reading(
        direction=first - rest[0] if rest else first,
        constant=constants[0] - sum(constants[1:]),
        factor=_factor(model, before),
    )


def _weights(model: TransformerBridge, normed: Tensor, tokens: list[int]) -> list[Float[Tensor, "d_model"]]:
    """Each token's row of whatever leads from the final norm to the logits."""
    with running(model, grad=True):
        leaf = normed.detach().requires_grad_()
        logits = model.unembed(leaf)[0, 0]
        return [torch.autograd.grad(logits[token], leaf, retain_graph=True)[0].flatten().double() for token in tokens]


def _factor(model: TransformerBridge, before: list[float]) -> float:
    """The logit over what it was before scale and cap; of two, the difference over what it was."""
    ends = torch.tensor([before[0], before[1] if len(before) > 1 else 0.0], dtype=torch.float64)
    if float(ends.diff().abs()) < _STEP:
        ends = ends.mean() + torch.tensor([_STEP, -_STEP], dtype=torch.float64)
    after = model.adapter.apply_output_logits_transform(ends)
    return float(after.diff() / ends.diff())
