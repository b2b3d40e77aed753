"""The closed forms: against explicit inverses, and the identities that make them what they are."""

import pytest
import torch

from edit.methods import EMMET, MEMIT, ROME, AlphaEdit
from edit.methods.rewriting.rewriting import stored
from edit.methods.rewriting.solves import equality, in_null_space, least_squares, solve_positive
from edit.statistics import KeyStatistics
from locate import NumericsError
from locate.model.weights import DownProjection
from tests.edit.methods.problems import solved

D, MODEL, N = 24, 8, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def moment():
    # Eigenvalues over four orders of magnitude, as keys have.
    basis = torch.linalg.qr(draw(D, D, seed=9))[0]
    return basis @ torch.diag(torch.logspace(-3, 1, D, dtype=torch.float64)) @ basis.T


@pytest.fixture(scope="module")
def statistics(moment):
    return KeyStatistics(second_moment=moment, count=1000, layer=1, corpus="made up", seed=0, fingerprint="none")


KEYS, RESIDUALS = draw(N, D, seed=1), draw(N, MODEL, seed=2)


def product(factors):
    left, right = factors
    return left @ right


def test_woodbury_equals_the_direct_solve(moment):
    found = product(least_squares(KEYS, RESIDUALS, 7 * moment))
    expected = RESIDUALS.T @ KEYS @ torch.linalg.inv(7 * moment + KEYS.T @ KEYS)
    torch.testing.assert_close(found, expected)


def test_without_preservation_least_squares_writes_every_residual(moment):
    found = product(least_squares(KEYS, RESIDUALS, 1e-9 * moment))
    torch.testing.assert_close(found @ KEYS.T, RESIDUALS.T, atol=1e-6, rtol=0)
    kept = product(least_squares(KEYS, RESIDUALS, 1e6 * moment))
    assert (kept @ KEYS.T - RESIDUALS.T).norm() > 0.5 * RESIDUALS.norm()


@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_equality_is_the_published_formula_and_exact_without_slack(moment, slack):
    found = product(equality(KEYS, RESIDUALS, moment, slack))
    inverse = torch.linalg.inv(moment)
    inner = KEYS @ inverse @ KEYS.T + slack * torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(found, RESIDUALS.T @ torch.linalg.inv(inner) @ KEYS @ inverse)
    missed = (found @ KEYS.T - RESIDUALS.T).norm()
    assert missed < 1e-9 if slack == 0 else missed > 1e-6


@pytest.mark.parametrize("transposed", [False, True])
def test_values_of_nearly_equal_keys_survive_the_rounding_of_the_factors(moment, transposed):
    keys = draw(1, D, seed=3).repeat(2, 1)
    keys[1] += 1e-3 * draw(D, seed=4)
    residuals = draw(2, MODEL, seed=5)
    down = DownProjection(layer=0, name="w", parameter=torch.nn.Parameter(torch.zeros(1, 1)), transposed=transposed)
    change = stored(*equality(keys, residuals, moment), down).dense()
    reached = keys @ (change if transposed else change.T).double()
    assert (reached - residuals).norm() < 1e-3 * residuals.norm()  # 4e-2 where each factor is rounded as it is


def test_equality_is_the_smallest_change_that_writes_the_residuals(moment):
    found = product(equality(KEYS, RESIDUALS, moment))
    # Any other change with the same products differs by one that is blind to the keys.
    blind = draw(MODEL, D, seed=3)
    blind = blind - blind @ torch.linalg.pinv(KEYS) @ KEYS
    other = found + 0.1 * blind
    torch.testing.assert_close(other @ KEYS.T, RESIDUALS.T)
    assert torch.trace(found @ moment @ found.T) < torch.trace(other @ moment @ other.T)


def test_equal_keys_cannot_have_two_values(moment):
    with pytest.raises(NumericsError, match="5 keys cannot all be given values of their own: some are equal"):
        equality(torch.cat([KEYS[:4], KEYS[:1]]), RESIDUALS, moment)


@pytest.mark.parametrize("energy", [0.001, 0.05])
def test_null_space_changes_stay_in_the_null_space(statistics, moment, energy):
    basis = statistics.null_space(energy=energy)
    projector = basis @ basis.T
    torch.testing.assert_close(projector @ projector, projector)
    earlier = draw(3, D, seed=4)
    found = product(in_null_space(KEYS, RESIDUALS, basis, earlier, ridge=0.5))
    assert ((torch.eye(D, dtype=torch.float64) - projector) @ found.T).norm() < 1e-12
    system = projector @ (KEYS.T @ KEYS + earlier.T @ earlier) + 0.5 * torch.eye(D, dtype=torch.float64)
    torch.testing.assert_close(found, torch.linalg.solve(system, projector @ KEYS.T @ RESIDUALS).T)


METHODS = [MEMIT(weight=3.0), AlphaEdit(energy=0.05, ridge=0.5), EMMET(slack=0.0, weight=3.0)]


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda method: type(method).__name__)
def test_one_batch_is_the_same_edits_in_sequence(method, statistics):
    weights, wanted = draw(MODEL, D, seed=5), draw(N, MODEL, seed=6)
    none = torch.zeros(0, D, dtype=torch.float64)
    whole = product(solved(method, KEYS, wanted - KEYS @ weights.T, statistics, none))
    total = torch.zeros(MODEL, D, dtype=torch.float64)
    for first, last in ((0, 2), (2, 3), (3, N)):
        own = KEYS[first:last]
        residuals = wanted[first:last] - own @ (weights + total).T
        total = total + product(solved(method, own, residuals, statistics, KEYS[:first]))
    torch.testing.assert_close(total, whole)
    forgetful = torch.zeros(MODEL, D, dtype=torch.float64)
    for row in range(N):
        own = KEYS[row : row + 1]
        residuals = wanted[row : row + 1] - own @ (weights + forgetful).T
        forgetful = forgetful + product(solved(method, own, residuals, statistics, none))
    assert (forgetful - whole).norm() > 1e-3 * whole.norm()


def test_memit_without_memory_leaves_earlier_keys_out(statistics):
    earlier = draw(3, D, seed=4)
    none = earlier[:0]
    with_memory = product(solved(MEMIT(weight=3.0), KEYS, RESIDUALS, statistics, earlier))
    without = product(solved(MEMIT(weight=3.0, remember=False), KEYS, RESIDUALS, statistics, earlier))
    torch.testing.assert_close(without, product(solved(MEMIT(weight=3.0), KEYS, RESIDUALS, statistics, none)))
    assert (with_memory @ earlier.T).norm() < (without @ earlier.T).norm()


def test_emmet_preserves_earlier_keys_better_than_without_them(statistics):
    earlier = draw(3, D, seed=4)
    method = METHODS[2]
    with_memory = product(solved(method, KEYS, RESIDUALS, statistics, earlier))
    without = product(solved(method, KEYS, RESIDUALS, statistics, earlier[:0]))
    torch.testing.assert_close(with_memory @ KEYS.T, RESIDUALS.T)
    assert (with_memory @ earlier.T).norm() < (without @ earlier.T).norm()


def test_rome_solves_keys_one_after_the_other(statistics):
    left, right = solved(ROME(), KEYS, RESIDUALS, statistics, torch.zeros(0, D, dtype=torch.float64))
    total = torch.zeros(MODEL, D, dtype=torch.float64)
    inverse = torch.linalg.inv(statistics.second_moment)
    for key, residual in zip(KEYS, RESIDUALS, strict=True):
        direction = inverse @ key
        total = total + torch.outer(residual - total @ key, direction) / (direction @ key)
        torch.testing.assert_close(total @ key, residual)
    torch.testing.assert_close(left @ right, total)


def test_independent_edits_do_not_depend_on_order(statistics):
    order = torch.tensor([3, 0, 4, 2, 1])
    none = torch.zeros(0, D, dtype=torch.float64)
    for method in METHODS:
        found = product(solved(method, KEYS, RESIDUALS, statistics, none))
        torch.testing.assert_close(product(solved(method, KEYS[order], RESIDUALS[order], statistics, none)), found)


def test_a_singular_or_indefinite_matrix_is_an_error():
    with pytest.raises(
        NumericsError, match=r"24 × 24 matrix .* is singular: its keys are too few.*at least 48, better 240"
    ):
        solve_positive(torch.ones(D, D), KEYS.T)
    silent = torch.eye(D)
    silent[3, 3] = 0
    with pytest.raises(NumericsError, match=r"is singular: 1 of 24 neurons were zero in all of the text\. Add a ridge"):
        solve_positive(silent, KEYS.T)
    with pytest.raises(NumericsError, match=r"24 × 24 matrix .* is indefinite: some squares of its keys are negative"):
        solve_positive(-torch.eye(D), KEYS.T)
