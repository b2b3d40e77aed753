"""From the stream to log-probabilities, with the final norm's scale held at that of a real run."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from locate.engine.freezing import LOGIT_TOLERANCE
from locate.errors import ModelError
from locate.model.norms import NormShape
from locate.model.weights import read_by


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
        gain = shape.scaled(state, model.ln_final(state)).flatten().float()
        if like is None:
            module = model.unembed.original_component
            weight = read_by(module, model.cfg.d_model).detach().float()
            bias = getattr(module, "bias", None)
            plain = weight.new_zeros(weight.shape[1]) if bias is None else bias.detach().float()
        else:
            weight, plain = like.weight, like.bias
        found = cls(
            model=model, gain=gain, shift=shape.shift.flatten().to(gain), centred=shape.centred, weight=weight,
            bias=plain,
        )  # fmt: skip
        own = found.transformed(found.raw(final[None].float()))[0]
        error = float((own - logits.float()).abs().max()) / max(float(logits.float().std()), 1e-30)
        if not error <= LOGIT_TOLERANCE[logits.dtype]:
            raise ModelError(
                f"{type(model.original_model).__name__} does not read its logits from the residual stream by the final "
                "norm and the unembedding alone, so that what a neuron adds to them cannot be told. Use another model."
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

    def transformed(self, raw: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        """Logits with what the architecture does to them after the unembedding, such as a scale or a cap."""
        return self.model.adapter.apply_output_logits_transform(raw)

    def log_probabilities(self, streams: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Of the next token, given streams."""
        return self.transformed(self.raw(streams)).log_softmax(-1)

    def factor(self) -> float | None:
        """What raw logits are multiplied by; None where something else is done to them, as by a cap."""
        raw = torch.linspace(-50, 50, self.weight.shape[1], dtype=torch.float32, device=self.weight.device)[None]
        nothing, once, twice = (self.transformed(raw * times) for times in (0, 1, 2))
        factor = float((once - nothing)[0, -1] / raw[0, -1])
        straight = all(
            torch.allclose(made - nothing, raw * times * factor, rtol=1e-4, atol=1e-4)
            for made, times in ((once, 1), (twice, 2))
        )
        return factor if straight else None
