"""Writing values at keys: the closed forms of the locate-then-edit family, as low-rank factors in float64.

Keys are rows. Every function returns ``left`` (``d_model × n``) and ``right`` (``n × d_mlp``), whose product is Δ.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edit.statistics import KeyStatistics
from edit.statistics.factorised import Factorised
from locate.errors import NumericsError

Factors = tuple[Float[Tensor, "d_model n"], Float[Tensor, "n d_mlp"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What one layer is asked to write, and what it is to leave alone.

    Attributes:
        keys: where to write.
        residuals: what to add to what the down-projection gives there.
        statistics: of the layer's keys.
        earlier: keys of earlier edits.
    """

    keys: Float[Tensor, "n d_mlp"]
    residuals: Float[Tensor, "n d_model"]
    statistics: KeyStatistics
    earlier: Float[Tensor, "m d_mlp"]

    def preserved(self, weight: float) -> Float[Tensor, "d_mlp d_mlp"]:
        """λC + K_pK_pᵀ: what an edit should leave alone, the keys of earlier edits among it."""
        before = self.earlier.double()
        return weight * self.statistics.second_moment + before.T @ before


def usual_weight(size: int) -> float:
    """MEMIT's λ for keys of a size: 15,000 for the 14,336 of a Llama-type model, in proportion.

    What a key's own value weighs against λC grows with its dimension, as kᵀC⁻¹k does.

    >>> usual_weight(14_336)
    15000.0
    """
    return 15_000 * size / 14_336


def least_squares(
    keys: Float[Tensor, "n d_mlp"], residuals: Float[Tensor, "n d_model"], preserved: Float[Tensor, "d_mlp d_mlp"]
) -> Factors:
    """Δ = R Kᵀ (A + KKᵀ)⁻¹, with A what is to be preserved: λC, earlier keys, a ridge.

    By Woodbury's identity Kᵀ(A + KKᵀ)⁻¹ = (I + KᵀA⁻¹K)⁻¹ KᵀA⁻¹, so the system to solve has one row per key.

    Raises:
        NumericsError: A is singular or indefinite.

    >>> left, right = least_squares(torch.eye(3)[:1], torch.ones(1, 2), torch.eye(3))
    >>> (left @ right).tolist()
    [[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]
    """
    keys, residuals = keys.double(), residuals.double()
    solved = solve_positive(preserved, keys.T)  # A⁻¹K
    inner = torch.eye(len(keys), dtype=torch.float64) + keys @ solved
    return residuals.T @ torch.linalg.inv(inner), solved.T


def equality(
    keys: Float[Tensor, "n d_mlp"], residuals: Float[Tensor, "n d_model"], preserved: Float[Tensor, "d_mlp d_mlp"],
    slack: float = 0.0,
) -> Factors:  # fmt: skip
    """Δ = R (KᵀA⁻¹K + slack·I)⁻¹ KᵀA⁻¹: the smallest change in the metric A with ΔK = R (at slack 0).

    Raises:
        NumericsError: A is singular, or keys are so alike that not all can be given their own value.

    >>> left, right = equality(torch.eye(3)[:1], torch.ones(1, 2), 5 * torch.eye(3))
    >>> (left @ right).round(decimals=6).tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """
    keys, residuals = keys.double(), residuals.double()
    solved = solve_positive(preserved, keys.T)
    inner = keys @ solved
    inner = inner + slack * torch.eye(len(keys), dtype=torch.float64)
    # Relative to the keys' own sizes: two equal keys leave an eigenvalue of zero.
    scale = inner.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    smallest = torch.linalg.eigvalsh(inner / scale[:, None] / scale[None]).min()
    if not smallest > 1e-10:
        raise NumericsError(
            f"{len(keys)} keys cannot all be given values of their own: some are equal or depend on each other "
            f"(smallest eigenvalue {float(smallest):.1e}). Leave out requests that repeat a prompt, or allow a slack."
        )
    return residuals.T @ torch.linalg.inv(inner), solved.T


def in_null_space(
    keys: Float[Tensor, "n d_mlp"], residuals: Float[Tensor, "n d_model"], basis: Float[Tensor, "d_mlp rank"],
    earlier: Float[Tensor, "m d_mlp"], ridge: float,
) -> Factors:  # fmt: skip
    """Δᵀ = [P(KKᵀ + K_pK_pᵀ) + L2·I]⁻¹ P K Rᵀ with P = U Uᵀ: least squares in the coordinates of the null space U.

    Raises:
        NumericsError: the ridge does not make the system solvable.

    >>> left, right = in_null_space(torch.ones(1, 2), torch.ones(1, 1), torch.eye(2)[:, :1], torch.zeros(0, 2), 1.0)
    >>> (left @ right).tolist()
    [[0.5, 0.0]]
    """
    basis = basis.double()
    inside, before = keys.double() @ basis, earlier.double() @ basis
    preserved = before.T @ before
    preserved.diagonal().add_(ridge)
    left, right = least_squares(inside, residuals, preserved)
    return left, right @ basis.T


def solve_positive(matrix: Float[Tensor, "d d"], columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """A⁻¹ applied to columns, for a symmetric positive definite A, in float64.

    Raises:
        NumericsError: A is singular, indefinite or not finite.

    >>> solve_positive(2 * torch.eye(2), torch.ones(2, 1)).round(decimals=6).tolist()
    [[0.5], [0.5]]
    """
    size = len(matrix)
    return Factorised.of(matrix, f"The {size} × {size} matrix of what is to be preserved is").solve(columns)


def mean_over_prefixes(rows: Float[Tensor, "prefix d"], bare_weight: float | None = 0.5) -> Float[Tensor, "d"]:
    """The mean of rows of which the first, the bare prompt's, has a weight of its own; None for a plain mean.

    >>> mean_over_prefixes(torch.tensor([[0.0], [4.0], [8.0]])).item()
    3.0
    """
    if bare_weight is None or len(rows) == 1:
        return rows.mean(0)
    return bare_weight * rows[0] + (1 - bare_weight) * rows[1:].mean(0)
