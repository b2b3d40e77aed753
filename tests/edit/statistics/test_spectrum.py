"""What is said of the eigenvalues of key statistics."""

import math

import pytest
import torch

import edit
from edit import KeyStatistics
from locate import NumericsError


def statistics(values, rotated=True):
    """Statistics with these eigenvalues."""
    moment = torch.diag(torch.tensor(values, dtype=torch.float64))
    if rotated:
        draw = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        turn = torch.linalg.qr(draw)[0]
        moment = turn @ moment @ turn.T
        moment = (moment + moment.T) / 2
    return KeyStatistics(second_moment=moment, count=9, layer=2, corpus="a", seed=0, fingerprint="abc")


def test_equal_eigenvalues_are_as_even_as_can_be():
    found = edit.spectrum(statistics([2.0] * 20))
    assert found.rank == 20
    assert found.condition == pytest.approx(1)
    assert found.effective_rank == pytest.approx(20)
    assert found.share_of_largest_tenth == pytest.approx(0.1)


def test_unequal_ones_are_described_by_hand():
    found = edit.spectrum(statistics([1.0, 3.0, 4.0]))
    shares = [1 / 8, 3 / 8, 4 / 8]
    assert found.effective_rank == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert found.condition == pytest.approx(4)
    assert found.share_of_largest_tenth == pytest.approx(0.5)  # a tenth of three is one


def test_rounding_is_no_rank_and_a_singular_matrix_has_no_condition():
    found = edit.spectrum(statistics([0.0, 1e-9, 1.0], rotated=False))
    assert (found.rank, found.condition) == (1, math.inf)
    assert found.effective_rank == pytest.approx(1, abs=1e-6)


def test_what_is_not_finite_is_refused():
    with pytest.raises(NumericsError, match="not finite"):
        edit.spectrum(statistics([math.nan, 1.0], rotated=False))
