"""Symmetric positive definite matrices, factorised once and solved with as often as asked."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locate.errors import NumericsError


@dataclass(frozen=True, kw_only=True, eq=False)
class Factorised:
    """A symmetric positive definite matrix A of keys' moments as its Cholesky factor, in float64.

    >>> Factorised.of(2 * torch.eye(2), "The matrix is").solve(torch.ones(2, 1)).round(decimals=6).tolist()
    [[0.5], [0.5]]
    """

    factor: Float[Tensor, "d d"]

    @classmethod
    def of(cls, matrix: Float[Tensor, "d d"], what: str, keys: str = "") -> "Factorised":
        """Factorise a matrix.

        Args:
            matrix: A.
            what: begins the message where that fails, such as ``"The key statistics of layer 4 are"``.
            keys: says there which keys A was made of.

        Raises:
            NumericsError: A is singular, indefinite or not finite.
        """
        factor, failed = torch.linalg.cholesky_ex(matrix.double())
        if failed or not factor.isfinite().all():
            raise NumericsError(f"{what} {_why(matrix, keys)}")
        return cls(factor=factor)

    def solve(self, columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """A⁻¹ applied to columns."""
        return torch.cholesky_solve(columns.to(self.factor), self.factor)


def _why(matrix: Float[Tensor, "d d"], keys: str) -> str:
    size, diagonal = len(matrix), matrix.diagonal()
    if silent := int((diagonal == 0).sum()):
        return (
            f"singular: {silent} of {size} neurons were zero in all of {keys or 'the text'}. Add a ridge "
            "(stabilisers=(edit.ENCORE(),)), use AlphaEdit, or edit a layer where every neuron fires; other text may "
            "help as well."
        )
    if (diagonal < 0).any():
        return (
            f"indefinite: some squares of {keys or 'its keys'} are negative on average, which no keys give. Collect "
            "the key statistics again."
        )
    few = keys or "its keys are too few, or too much alike"
    return f"singular: {few}. Collect more: at least {2 * size}, better {10 * size}."
