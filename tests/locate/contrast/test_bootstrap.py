"""Bootstraps of means against scipy's, and with missing values against a loop over resamples."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from locate.contrast.bootstrap import mean_interval, resampled_means

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.normal(size=(40, 3, 2)) + np.arange(6).reshape(3, 2)


def test_intervals_are_those_of_scipy():
    mean, low, high = mean_interval(VALUES, confidence=0.9, resamples=20_000)
    other = bootstrap(
        (VALUES,), np.mean, axis=0, method="percentile", confidence_level=0.9, n_resamples=20_000, batch=500,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(mean, VALUES.mean(0))
    # Both are random: a hundredth of the interval's width is what so many resamples leave open.
    width = float((other.high - other.low).mean())
    np.testing.assert_allclose(low, other.low, atol=0.03 * width)
    np.testing.assert_allclose(high, other.high, atol=0.03 * width)


def test_what_is_missing_does_not_count(monkeypatch):
    values = VALUES.copy()
    values[GENERATOR.random(values.shape) < 0.6] = np.nan
    values[:, 0, 0] = np.nan  # nobody has a value here,
    values[1:, 0, 1] = np.nan  # and one fact alone here
    values[0, 0, 1] = 5.0
    monkeypatch.setattr("locate.contrast.bootstrap._AT_A_TIME", 4)
    mean, low, high = mean_interval(values, resamples=300, seed=7)
    draws = np.random.default_rng(7).multinomial(40, np.full(40, 1 / 40), size=300)
    for place in np.ndindex(values.shape[1:]):
        own = values[:, *place]
        known = own[~np.isnan(own)]
        if len(known) < 2:
            assert np.isnan(low[place])
            assert np.isnan(high[place])
            assert mean[place] == pytest.approx(known[0]) if len(known) else np.isnan(mean[place])
            continue
        assert mean[place] == pytest.approx(known.mean())
        means = [np.nanmean(np.repeat(own, times)) for times in draws]
        np.testing.assert_allclose((low[place], high[place]), np.percentile(means, [2.5, 97.5]))
    assert np.isnan(mean[0, 0])


def test_a_resample_without_a_value_has_no_mean():
    means = resampled_means(np.array([[1.0, 2.0], [np.nan, 4.0]]), resamples=200)
    assert 20 < np.isnan(means[:, 0]).sum() < 80  # a quarter of the resamples draw the second fact twice
    assert np.nanmin(means[:, 0]) == np.nanmax(means[:, 0]) == 1.0
    assert set(means[:, 1]) == {2.0, 3.0, 4.0}


def test_intervals_cover_the_mean_as_often_as_they_say():
    covered = 0
    for seed in range(400):
        _, low, high = mean_interval(GENERATOR.normal(0.3, 0.2, size=40), resamples=400, seed=seed)
        covered += bool(low <= 0.3 <= high)
    assert 0.9 <= covered / 400 <= 0.97
