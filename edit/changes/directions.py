"""Singular directions of a change of a matrix: from its factors where it has thin ones, else from the difference."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edit.changes.lowrank import LowRank, thin_svd

# Of the largest singular value: what is smaller than this is zero but for the rounding of float64 squares.
_SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """A matrix as Σ σᵢ uᵢ vᵢᵀ in float64, the largest σ first; or each of a stack of matrices so.

    Attributes:
        left: u, as columns.
        values: σ.
        right: v, as rows.
        noise: singular values up to here may be the rounding of the two weights whose difference this is.

    >>> found = Directions.of(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    >>> found.values.tolist(), found.top(1).round().tolist()
    ([4.0, 3.0], [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    """

    left: Float[Tensor, "*stack out rank"]
    values: Float[Tensor, "*stack rank"]
    right: Float[Tensor, "*stack rank in"]
    noise: float = 0.0

    @classmethod
    def between(cls, base: Tensor, edited: Tensor, *, factors: LowRank | None = None) -> "Directions":
        """Those of the difference of two tensors; a vector is a matrix of one column.

        Args:
            base: before.
            edited: after.
            factors: of the difference, where they are known: if they are thin, nothing else is looked at.

        >>> Directions.between(torch.zeros(2), torch.tensor([3.0, 4.0])).values.tolist()
        [5.0]
        """
        if factors is not None and factors.rank < min(factors.shape):
            left, values, right = thin_svd(factors)
            return cls(left=left, values=values, right=right, noise=_SMALLEST * float(values.max()))
        place = torch.device("cpu") if base.device.type == "mps" else base.device  # which has no float64
        rounding = torch.finfo(base.dtype).eps * float(edited.float().norm())
        return cls.of(edited.to(place).double() - base.to(place).double(), noise=rounding)

    @classmethod
    def of(cls, matrix: Tensor, *, noise: float = 0.0) -> "Directions":
        """Those of a matrix, by way of its squares: all of them take a wide matrix minutes otherwise."""
        own = matrix.double() if matrix.ndim > 1 else matrix.double()[:, None]
        flat = own.shape[-2] > own.shape[-1]
        own = own.mT if flat else own
        energy, vectors = torch.linalg.eigh(own @ own.mT)
        left, values = vectors.flip(-1), energy.flip(-1).clamp(min=0).sqrt()
        there = values > _SMALLEST * values.amax(-1, keepdim=True)
        scale = torch.where(there, 1 / values.where(there, 1.0), 0.0)
        found = cls(left=left, values=values * there, right=scale[..., None] * (left.mT @ own), noise=noise)
        return found.turned() if flat else found

    def __len__(self) -> int:
        """How many are more than rounding; of a stack, the most that one of its matrices has."""
        return int((self.values > max(self.noise, 0.0)).sum(-1).max())

    def turned(self) -> "Directions":
        """Those of the transposed matrix.

        >>> Directions.of(torch.ones(2, 3)).turned().left.shape
        torch.Size([3, 2])
        """
        return Directions(left=self.right.mT, values=self.values, right=self.left.mT, noise=self.noise)

    def top(self, k: int) -> Float[Tensor, "*stack out in"]:
        """The sum of the ``k`` largest."""
        return self.left[..., :k] * self.values[..., None, :k] @ self.right[..., :k, :]

    def columns(self) -> Float[Tensor, "*stack in"]:
        """The energy (sum of squares) of each column.

        >>> Directions.of(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).columns().tolist()
        [25.0, 0.0]
        """
        return (self.values.square()[..., None] * self.right.square()).sum(-2)

    def rows(self) -> Float[Tensor, "*stack out"]:
        """The energy of each row.

        >>> Directions.of(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).rows().round().tolist()
        [25.0, 0.0]
        """
        return self.turned().columns()

    @property
    def effective(self) -> float:
        """Into how many directions of equal energy it would go: (Σσ²)² ∕ Σσ⁴. A stack counts as one matrix of blocks.

        >>> round(Directions.of(torch.eye(3, dtype=torch.float32)).effective, 6)
        3.0
        """
        return participation(self.values.square())


def effective_rank(matrix: Float[Tensor, "out in"], *, factors: LowRank | None = None) -> float:
    """The same without any singular value, which a wide matrix takes long to give; of thin factors, by these.

    >>> effective_rank(torch.eye(3, dtype=torch.float32))
    3.0
    """
    if factors is not None and factors.rank < min(factors.shape):
        return participation(thin_svd(factors)[1].square())
    own = matrix.double()
    square = own @ own.T if own.shape[0] <= own.shape[1] else own.T @ own
    return float(square.trace() ** 2 / square.square().sum())


def participation(energy: Tensor) -> float:
    """Over how many parts of equal energy as much would be spread: (Σe)² ∕ Σe².

    >>> participation(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    return float(energy.sum() ** 2 / energy.square().sum())
