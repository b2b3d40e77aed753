"""MEMIT: write many facts at once, spread over several layers."""

from jaxtyping import Float
from torch import Tensor

from edit.hyperparameters import Positive, hyperparameters
from edit.methods.rewriting.solves import Factors, least_squares
from edit.methods.rewriting.spreading import Spreading, preserved_keys, usual_weight
from edit.statistics import KeyStatistics


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

    def solve(
        self,
        keys: Float[Tensor, "edit d_mlp"],
        residuals: Float[Tensor, "edit d_model"],
        statistics: KeyStatistics,
        earlier: Float[Tensor, "before d_mlp"],
    ) -> Factors:
        """See ``LocateThenEdit.solve``."""
        weight = usual_weight(keys.shape[1]) if self.weight is None else self.weight
        before = earlier if self.remember else earlier[:0]
        return least_squares(
            keys, residuals, self._with_ridge(preserved_keys(statistics.second_moment, weight, before))
        )
