"""MEMIT: write many facts at once, spread over several layers."""

from dataclasses import replace

from edit.hyperparameters import Positive, hyperparameters
from edit.methods.rewriting.solves import Factors, Problem, least_squares, usual_weight
from edit.methods.rewriting.spreading import Spreading


@hyperparameters
class MEMIT(Spreading):
    """Mass editing of a transformer's memory (Meng et al. 2023, arXiv:2210.07229).

    Values z of all requests are found in the residual stream after the last layer. Each layer in turn then writes
    its share of what is still missing, R = (z − h) / (layers left), by Δ = R Kᵀ (λC + K_pK_pᵀ + KKᵀ)⁻¹ with the
    keys K_p of earlier edits.

    Args:
        weight: λ; by default 15,000 for keys of a Llama-type model's dimension (14,336), in proportion to it.
        remember: False leaves K_p out, as the published sequential runs did, which collapse; for comparison.

    >>> update = edit.MEMIT(layers=(3, 4)).fit(model, [request])
    >>> len(update.parameters)
    2
    """

    weight: Positive | None = None
    remember: bool = True

    def solve(self, problem: Problem) -> Factors:
        """See ``LocateThenEdit.solve``."""
        known = problem if self.remember else replace(problem, earlier=problem.earlier[:0])
        preserved = known.preserved(self.weight or usual_weight(problem.keys.shape[1]))
        return least_squares(problem.keys, problem.residuals, self._with_ridge(preserved))
