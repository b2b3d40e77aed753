"""AlphaEdit: changes that stay in the null space of what the model's keys span."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from edit.hyperparameters import Positive, hyperparameters, refused
from edit.methods.rewriting.solves import Factors, Problem, in_null_space
from edit.methods.rewriting.spreading import Spreading


def _below_one(energy: float) -> float:
    if not energy < 1:
        raise refused("must be a share below 1, found {}.")
    return energy


@hyperparameters
class AlphaEdit(Spreading):
    """Null-space constrained editing (Fang et al. 2025, arXiv:2410.02355).

    As MEMIT, but each layer's change is projected onto the directions in which keys have little energy, so that it
    leaves other knowledge alone: [P(KKᵀ + K_pK_pᵀ) + L2·I] Δᵀ = P K Rᵀ, with the keys K_p of earlier edits.

    Args:
        energy: the share of the keys' energy that the null space may hold.
        threshold: instead of ``energy``, the largest eigenvalue of C that counts as zero (2e-2 in the publication;
            its meaning depends on the model's scale).
        ridge: L2; by default ``relative_ridge`` times the mean energy of a key in the null space.
        relative_ridge: see ``ridge``.

    >>> method = edit.AlphaEdit(layers=(3, 4), statistics_tokens=30_000)
    >>> len(method.fit(model, [request]).parameters)
    2
    """

    # The null space needs more keys than a solve does: of quick statistics it is another, a fifth smaller one.
    keys_per_dimension: ClassVar[int] = 40

    energy: Annotated[Positive, AfterValidator(_below_one)] | None = 0.1
    threshold: Positive | None = None
    ridge: Positive | None = None
    relative_ridge: Positive = 1.0

    def solve(self, problem: Problem) -> Factors:
        """See ``LocateThenEdit.solve``."""
        statistics, earlier = problem.statistics, problem.earlier
        energy = None if self.threshold is not None else self.energy
        basis = statistics.null_space(energy=energy, threshold=self.threshold)
        ridge = self.ridge
        if ridge is None:
            # Of all keys, and not of the batch's own: a batch and the same edits in sequence must agree.
            held = statistics.eigen()[0][: basis.shape[1]].clamp(min=0).sum()
            ridge = self.relative_ridge * float(held)
        held_before = (earlier.double() @ basis).square().sum(0)
        ridge += self._extra_ridge(held_before + ridge)
        return in_null_space(problem.keys, problem.residuals, basis, earlier, ridge)
