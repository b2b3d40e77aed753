"""EMMET: a batch of facts in one layer, each given exactly its value."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from edit.methods.base import check_positive
from edit.methods.rewriting.solves import Factors, equality
from edit.methods.rewriting.spreading import Spreading, preserved_keys, usual_weight
from edit.statistics import KeyStatistics
from edit.values.objective import Place, ValueObjective
from locate.errors import NumericsError


@dataclass(frozen=True, kw_only=True)
class EMMET(Spreading):
    """Equality-constrained mass editing (Gupta et al. 2024, arXiv:2403.14236).

    ROME's objective for a whole batch: the smallest change in the metric of the key statistics that gives every
    key its value, Δ = R (KᵀC⁻¹K + λI)⁻¹ KᵀC⁻¹. Earlier edits' keys are preserved by C + K_pK_pᵀ / w. Keys are
    MEMIT's means, as published; R compares with the outputs' mean of the same kind, so that each key gets its value.

    Args:
        slack: λ, how far values may be missed where keys are alike.
        weight: w, how many earlier edits weigh as much as the statistics; by default MEMIT's λ.

    >>> edit.EMMET(layers=(4,)).fit(model, [request]).rank
    1
    """

    place: ClassVar[Place] = "mlp"
    # One early layer, as ROME's.
    depth: ClassVar[tuple[float, float]] = (0.145, 0.145)
    _mean_output: ClassVar[bool] = True

    objective: ValueObjective = field(default_factory=ValueObjective)
    slack: float = 0.1
    weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(weight=self.weight)
        if not 0 <= self.slack < float("inf"):
            raise NumericsError(f"slack: must be 0 or more, found {self.slack}.")

    def solve(
        self,
        keys: Float[Tensor, "edit d_mlp"],
        residuals: Float[Tensor, "edit d_model"],
        statistics: KeyStatistics,
        earlier: Float[Tensor, "before d_mlp"],
    ) -> Factors:
        """See ``LocateThenEdit.solve``."""
        weight = usual_weight(keys.shape[1]) if self.weight is None else self.weight
        preserved = preserved_keys(statistics.second_moment, weight, earlier) / weight
        return equality(keys, residuals, self._with_ridge(preserved), self.slack)
