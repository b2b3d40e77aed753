"""Norms with the scale that they have at some states, which makes them linear."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locate.errors import ModelError
from locate.model.precision import at_least_float32

# What a norm makes of a state may differ by so much from what was found of it: roundings, and a norm's own epsilon.
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class NormShape:
    """What a norm does to any state, up to the one number by which it scales it.

    Attributes:
        gain: of each entry; of each head's own where they differ.
        shift: what is added at the end.
        centred: whether the mean is taken away first.
    """

    gain: Float[Tensor, "*any width"]
    shift: Float[Tensor, "*any width"]
    centred: bool

    @classmethod
    @torch.no_grad()
    def of(cls, norm: nn.Module, like: Float[Tensor, "*any width"]) -> "NormShape":
        """Found from what the norm makes of a few vectors of the form of ``like``.

        >>> NormShape.of(torch.nn.LayerNorm(4), torch.zeros(2, 3, 4)).centred
        True
        """
        probe = torch.ones(like.shape[-1], device=like.device, dtype=like.dtype)
        probe[::2] = -1
        probe = probe - probe.mean()  # where the width is odd, its mean is not 0

        def made(vector: Tensor) -> Tensor:
            return at_least_float32(norm(vector.expand(1, *like.shape[1:])))

        shift = made(torch.zeros_like(probe))
        gain = (made(probe) - shift) / probe
        centred = torch.allclose(made(probe + 1), made(probe), rtol=1e-2, atol=1e-3)
        return cls(gain=_alike(gain), shift=_alike(shift), centred=centred)

    @torch.no_grad()
    def unscaled(self, vectors: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        """What becomes of parts of a state where the scale is 1, the shift left out; for norms alike in all heads.

        >>> shape = NormShape.of(torch.nn.LayerNorm(4), torch.zeros(2, 3, 4))
        >>> shape.unscaled(torch.tensor([[1.0, 2.0, 3.0, 2.0]])).round().tolist()
        [[-1.0, 0.0, 1.0, 0.0]]
        """
        centred = vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors
        return centred * self.gain.flatten().to(vectors)

    @torch.no_grad()
    def scaled(self, states: Float[Tensor, "*any width"], made: Float[Tensor, "*any width"]) -> Tensor:
        """The gain times the scale that the norm has at each of these states, of which it made ``made``.

        Raises:
            ModelError: it did something else to them.
        """
        given = at_least_float32(states)
        if self.centred:
            given = given - given.mean(-1, keepdim=True)
        wanted, shape = at_least_float32(made) - self.shift, given * self.gain
        scale = (wanted * shape).sum(-1, keepdim=True) / (shape * shape).sum(-1, keepdim=True).clamp_min(1e-30)
        size, eps = float(wanted.abs().max()), torch.finfo(made.dtype).eps
        if not float((scale * shape - wanted).abs().max()) <= max(_TOLERANCE, 16 * eps) * size:
            raise ModelError(
                "A norm of this model is no scale of its input with a gain and a shift, so that its scale cannot be "
                "held constant. Use a method that takes gradients as they are."
            )
        return self.gain * scale


def _alike(values: Tensor) -> Tensor:
    """The same, each axis but the last cut to one where all along it are alike: positions are, heads may be."""
    for axis in range(values.ndim - 1):
        first = values.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(values), values):
            values = first
    return values
