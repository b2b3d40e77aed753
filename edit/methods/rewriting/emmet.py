"""EMMET: a batch of facts in one layer, each given exactly its value."""

from dataclasses import field
from typing import ClassVar

from edit.hyperparameters import NotNegative, Positive, hyperparameters
from edit.methods.rewriting.solves import Factors, Problem, equality, usual_weight
from edit.methods.rewriting.spreading import Spreading
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

    def solve(self, problem: Problem) -> Factors:
        """See ``LocateThenEdit.solve``."""
        weight = self.weight or usual_weight(problem.keys.shape[1])
        preserved = self._with_ridge(problem.preserved(weight) / weight)
        return equality(problem.keys, problem.residuals, preserved, self.slack)
