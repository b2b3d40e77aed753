"""How alike two tables of scores are, against the definitions."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog

import locate
from edit.propagation.likeness import earth_movers, mass_moved, overlap, spearman
from edit.propagation.unrelated import About, percentile, standing, unrelated_pairs


def whole_transport(one, other):
    """Every cell's mass to every other cell, at the distance between them."""
    one, other = (np.clip(each, 0, None) / np.clip(each, 0, None).sum() for each in (one, other))
    places, layers = one.shape
    cells = [(p / max(places - 1, 1), layer / max(layers - 1, 1)) for p in range(places) for layer in range(layers)]
    costs = [abs(a - c) + abs(b - d) for a, b in cells for c, d in cells]
    from_one, to_other = np.kron(np.eye(len(cells)), np.ones(len(cells))), np.tile(np.eye(len(cells)), len(cells))
    ends = np.concatenate([one.ravel(), other.ravel()])
    return linprog(costs, A_eq=np.concatenate([from_one, to_other]), b_eq=ends, method="highs").fun


@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (4, 1), (2, 2)])
def test_the_flow_beside_cells_is_the_whole_transport(shape):
    draw = np.random.default_rng(0)
    one, other = (draw.normal(size=shape) + 0.5 for _ in range(2))
    assert earth_movers(one, other) == pytest.approx(whole_transport(one, other), abs=1e-7)
    assert earth_movers(one, other) > 0.05
    assert earth_movers(one, 3 * one) == pytest.approx(0, abs=1e-9)


def test_single_precision_moves_as_well():
    one = np.random.default_rng(1).random((6, 30)).astype(np.float32)
    assert 0 < earth_movers(one, one[::-1]) < 1


def test_what_has_no_mass_has_no_distance():
    assert math.isnan(earth_movers(np.zeros((2, 2)), np.ones((2, 2))))
    assert math.isnan(mass_moved(np.full(3, np.nan), np.ones(3)))
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_missing_sites_count_for_nothing():
    one, other = np.array([[3.0, np.nan, 1.0]]), np.array([[2.0, np.nan, 2.0]])
    assert overlap(one, other, 1) == 1
    assert earth_movers(one, other) == pytest.approx(0.25)
    assert mass_moved(one, -other) == pytest.approx(0.25)
    assert spearman(np.array([1.0, np.nan, 2.0, 3.0]), np.array([1.0, 9.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_verdicts_follow_from_numbers():
    null = np.linspace(0.2, 0.6, 21)
    said = [standing(value, null, alike=True, confidence=0.9) for value in (0.1, 0.4, 0.9, float("nan"))]
    assert said == [
        "less alike than unrelated facts", "as unrelated facts are", "more alike than unrelated facts", "not measured",
    ]  # fmt: skip
    assert standing(0.1, null, alike=False, confidence=0.9) == "more alike than unrelated facts"
    assert standing(0.1, null[:0], alike=False, confidence=0.9) == "no unrelated facts to compare with"
    assert percentile(null[10], null) == pytest.approx(50)
    assert percentile(0.1, null) == 0
    assert math.isnan(percentile(0.1, null * np.nan))


def test_facts_are_related_by_subject_relation_or_answer():
    about = [
        About("The Louvre", "Paris", "city"), About("Big Ben", "London", "city"), About("France", "Paris", "capital"),
        About("Dante", "Italy", "country"),
    ]  # fmt: skip
    assert unrelated_pairs(about) == [(0, 3), (1, 2), (1, 3), (2, 3)]
    assert unrelated_pairs(about[:1]) == []
    with pytest.raises(locate.FactError, match="null: no two of these 2 facts are unrelated"):
        unrelated_pairs(about[:2])
