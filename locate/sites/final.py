"""From the stream to logits, with the final norm's scale held at that of a real run: a linear map."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.freezing import LOGIT_TOLERANCE
from locate.errors import ModelError
from locate.model.norms import NormShape
from locate.model.weights import read_by

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """The final norm as the linear map that it is in one run, the unembedding, and what is done to logits after it.

    Attributes:
        model: a raw-mode bridge.
        gain: of the final norm, divided by the scale that it has in the run.
        shift: of the final norm.
        centred: whether it takes the mean away first.
        weight: of the unembedding.
        bias: of the unembedding, 0 where it has none.
    """

    model: TransformerBridge
    gain: Float[Tensor, "d_model"]
    shift: Float[Tensor, "d_model"]
    centred: bool
    weight: Float[Tensor, "d_model vocab"]
    bias: Float[Tensor, "vocab"]

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: TransformerBridge, final: Float[Tensor, "d_model"], logits: Float[Tensor, "vocab"],
        like: "Readout | None" = None,
    ) -> "Readout":  # fmt: skip
        """Of a run with this state before the final norm, and these logits.

        Args:
            model: a raw-mode bridge.
            final: the state.
            logits: what the model made of it.
            like: that of another run, whose weights are taken over.

        Raises:
            ModelError: the model reads its logits in another way.

        >>> from locate.engine import freeze
        >>> run = freeze(model, torch.tensor([[1, 2, 3]]))
        >>> found = Readout.of(model, run.residuals[-1][0, -1], run.logits[0])
        >>> torch.allclose(found.log_probabilities(run.residuals[-1][0, -1:]), run.logits.log_softmax(-1), atol=1e-4)
        True
        """
        state = final[None, None]
        shape = NormShape.of(model.ln_final, state)
        gain = shape.scaled(state, model.ln_final(state)).flatten()
        if like is None:
            module = model.unembed.original_component
            weight = read_by(module, model.cfg.d_model).detach().to(gain.dtype)
            bias = getattr(module, "bias", None)
            plain = weight.new_zeros(weight.shape[1]) if bias is None else bias.detach().to(gain.dtype)
        else:
            weight, plain = like.weight, like.bias
        found = cls(
            model=model, gain=gain, shift=shape.shift.flatten().to(gain), centred=shape.centred, weight=weight,
            bias=plain,
        )  # fmt: skip
        own = found.transformed(found.raw(final[None]))[0]
        error = float((own - logits.to(own)).abs().max()) / max(float(logits.float().std()), 1e-30)
        if not error <= LOGIT_TOLERANCE[logits.dtype]:
            raise ModelError(
                f"{type(model.original_model).__name__} does not read its logits from the residual stream by the final "
                "norm and the unembedding alone, so that what a part of it adds to them cannot be told. Use another "
                "model, or patch sites instead (locate.patch)."
            )
        return found

    def linear(self, vectors: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the norm makes of parts of the stream, its shift left out."""
        given = vectors.to(self.gain)
        if self.centred:
            given = given - given.mean(-1, keepdim=True)
        return given * self.gain

    def raw(self, streams: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits of streams as the unembedding gives them."""
        normed = self.linear(streams) + self.shift
        return torch.addmm(self.bias, normed.to(self.weight), self.weight)

    def transformed(self, raw: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Logits with what the architecture does to them after the unembedding, such as a scale or a cap."""
        return self.model.adapter.apply_output_logits_transform(raw)

    def log_probabilities(self, streams: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Of the next token, given streams."""
        return self.transformed(self.raw(streams)).log_softmax(-1)

    def towards(self, stream: Float[Tensor, "d_model"], answer: int, other: int | None = None) -> Reading:
        """How the run's final stream reaches logit(answer), or logit(answer) − logit(other).

        >>> from locate.engine import freeze
        >>> run = freeze(model, torch.tensor([[1, 2, 3]]))
        >>> final = run.residuals[-1][0, -1]
        >>> Readout.of(model, final, run.logits[0]).towards(final, 7, 8).factor
        1.0
        """
        tokens = [answer] if other is None else [answer, other]
        weight = self.weight[:, tokens].to(self.gain).double().T
        directions = self.gain.double() * weight
        if self.centred:
            directions = directions - directions.mean(-1, keepdim=True)
        constants = weight @ self.shift.double() + self.bias[tokens].to(self.gain).double()
        before = directions @ stream.to(directions) + constants
        signs = torch.tensor([1.0, -1.0]).to(before)[: len(tokens)]
        return Reading(
            direction=signs @ directions, constant=float(signs @ constants), factor=self._secant(before.cpu())
        )

    def factor(self) -> float | None:
        """What raw logits are multiplied by; None where something else is done to them, as by a cap."""
        raw = torch.linspace(-50, 50, self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)[None]
        nothing, once, twice = (self.transformed(raw * times) for times in (0, 1, 2))
        factor = float((once - nothing)[0, -1] / raw[0, -1])
        straight = all(
            torch.allclose(made - nothing, raw * times * factor, rtol=1e-4, atol=1e-4)
            for made, times in ((once, 1), (twice, 2))
        )
        return factor if straight else None

    def _secant(self, before: Float[Tensor, "token"]) -> float:
        """The logit over what it was before scale and cap; of two, the difference over what it was."""
        ends = before if len(before) > 1 else torch.cat([before, before.new_zeros(1)])
        if float(ends.diff().abs()) < _STEP:
            ends = ends.mean() + torch.tensor([_STEP, -_STEP], dtype=torch.float64)
        return float(self.transformed(ends).diff() / ends.diff())
