"""A change of a matrix as the product of two thin ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locate.errors import UpdateError


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """A matrix as the product of two thin ones, kept as float32 on the CPU.

    Raises:
        UpdateError: the factors do not fit each other.

    >>> LowRank(left=torch.ones(4, 1), right=torch.ones(1, 3)).dense().shape
    torch.Size([4, 3])
    """

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise UpdateError(
                "The factors of a low-rank change must be (out × rank) and (rank × in), found "
                f"{tuple(self.left.shape)} and {tuple(self.right.shape)}."
            )
        # A copy: what the caller does to its own tensors later must not reach a fitted update.
        for side in ("left", "right"):
            factor = getattr(self, side).detach().to("cpu", torch.float32, copy=True).contiguous()
            object.__setattr__(self, side, factor)

    @classmethod
    def exactly(cls, matrix: Float[Tensor, "out in"]) -> "LowRank":
        """A matrix of any rank, with the identity as one factor, so that the product gives every entry back.

        >>> LowRank.exactly(torch.tensor([[0.0, 0.1]])).dense().tolist() == [[0.0, 0.10000000149011612]]
        True
        """
        out, into = matrix.shape
        if out <= into:
            return cls(left=torch.eye(out, dtype=matrix.dtype), right=matrix)
        return cls(left=matrix, right=torch.eye(into, dtype=matrix.dtype))

    @property
    def rank(self) -> int:
        """The inner dimension of the product."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product."""
        return self.left.shape[0], self.right.shape[1]

    def joined(self, other: "LowRank") -> "LowRank":
        """The sum of both changes, of the sum of their ranks or of full rank."""
        if self.rank + other.rank >= min(self.shape):
            return LowRank.exactly(self.dense() + other.dense())
        return LowRank(left=torch.cat([self.left, other.left], 1), right=torch.cat([self.right, other.right]))

    def is_finite(self) -> bool:
        """Whether both factors are free of NaN and infinity."""
        return bool(self.left.isfinite().all() and self.right.isfinite().all())

    def dense(self, device: torch.device | str = "cpu") -> Float[Tensor, "out in"]:
        """The product, on a device, rounded once: in float64, whatever precision the caller computes in."""
        device = torch.device(device)
        # Apple's accelerators have no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        with torch.autocast(place.type, enabled=False):
            product = self.left.to(place, torch.float64) @ self.right.to(place, torch.float64)
        return product.float().to(device)


def factors_of(deltas: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors of changes by name, as a file holds them.

    >>> list(factors_of({"weight": LowRank(left=torch.ones(4, 1), right=torch.ones(1, 3))}))
    ['weight.left', 'weight.right']
    """
    return {f"{name}.{side}": getattr(delta, side) for name, delta in deltas.items() for side in _SIDES}


def deltas_in(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, LowRank]:
    """The changes of these names whose factors a file holds.

    Raises:
        KeyError: it does not hold one.

    >>> deltas_in({"weight.left": torch.ones(4, 1), "weight.right": torch.ones(1, 3)}, ["weight"])["weight"].rank
    1
    """
    return {name: LowRank(**{side: tensors[f"{name}.{side}"] for side in _SIDES}) for name in names}


_SIDES = ("left", "right")


def thin_svd(delta: LowRank) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank"], Float[Tensor, "rank in"]]:
    """The singular value decomposition of a low-rank change, through its factors, in float64.

    >>> [part.shape for part in thin_svd(LowRank(left=torch.ones(4, 1), right=torch.ones(1, 3)))]
    [torch.Size([4, 1]), torch.Size([1]), torch.Size([1, 3])]
    """
    q_left, r_left = torch.linalg.qr(delta.left.double())
    q_right, r_right = torch.linalg.qr(delta.right.double().T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ u, values, v @ q_right.T
