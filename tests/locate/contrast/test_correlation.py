"""Rank correlations against scipy's, on a table made by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from locate.contrast.correlation import correlated, pooled, within_facts, within_layers

NAN = float("nan")
SCORE = np.array([[0.1, 0.4, 0.2, 0.9], [0.3, 0.3, 0.8, 0.5], [NAN, 0.2, 0.6, 0.1], [0.7, 0.7, 0.7, 0.7]])
OUTCOME = np.array([[1.0, 0.5, 0.7, 0.1], [0.2, 0.9, 0.4, 0.6], [0.3, NAN, 0.8, 0.2], [0.1, 0.2, 0.3, 0.4]])


def of_two(one, other):
    there = ~np.isnan(one + other)
    return spearmanr(one[there], other[there]).statistic


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_correlations_are_scipys():
    assert pooled(SCORE, OUTCOME) == pytest.approx(of_two(SCORE.ravel(), OUTCOME.ravel()))
    by_layer = [of_two(SCORE[:, layer], OUTCOME[:, layer]) for layer in range(4)]
    assert within_layers(SCORE, OUTCOME) == pytest.approx(np.nanmean(by_layer))
    by_fact = [of_two(SCORE[fact], OUTCOME[fact]) for fact in range(3)]  # the fourth has nothing to rank
    assert within_facts(SCORE, OUTCOME) == pytest.approx(np.mean(by_fact))


def test_intervals_draw_facts():
    drawn = np.random.default_rng(7).integers(0, 4, (50, 4))
    found = correlated("pooled", SCORE, OUTCOME, resamples=50, seed=7)
    values = [of_two(SCORE[own].ravel(), OUTCOME[own].ravel()) for own in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.nanpercentile(values, [2.5, 97.5])))
    assert (found.value, found.facts) == (pytest.approx(pooled(SCORE, OUTCOME)), 4)
    by_fact = correlated("across layers, by fact", SCORE, OUTCOME)
    assert by_fact.low <= by_fact.value <= by_fact.high


def test_what_cannot_be_ranked_has_no_number():
    for one, other in ((SCORE[:, :1], OUTCOME[:, :1]), (SCORE[:0], OUTCOME[:0])):
        assert np.isnan(within_facts(one, other))
    assert np.isnan(correlated("across facts, by layer", SCORE[:1], OUTCOME[:1]).value)
    assert np.isnan(pooled(SCORE[3:], OUTCOME[3:]))
    assert np.isnan(correlated("pooled", SCORE[:1], OUTCOME[:1]).low)  # one fact has no spread
