"""EMMET: a batch of facts in one layer, each given exactly its value."""

from dataclasses import field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from edit.hyperparameters import NotNegative, Positive, hyperparameters
from edit.methods.rewriting.solves import Factors, equality
from edit.methods.rewriting.spreading import Spreading, preserved_keys, usual_weight
from edit.statistics import KeyStatistics
from edit.values.objective import Place, ValueObjective


@hyperparameters
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
    slack: NotNegative = 0.1
    weight: Positive | None = None

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
