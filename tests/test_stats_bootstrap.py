"""Bootstraps and aggregates against enumeration, scipy and limits."""

from itertools import product
from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reports.stats import improvement, improvement_interval, iqm, iqm_interval, profile, two_level

SCORES_RM = np.random.default_rng(3).random((6, 4))


def test_a_two_level_bootstrap_is_the_distribution_over_all_resamples():
    difference_SN = np.array([[0.0, 1.0, 0.5], [0.25, -1.0, 0.75]])
    every = [
        difference_SN[np.ix_(seeds, problems)].mean()
        for seeds, problems in product(product(range(2), repeat=2), product(range(3), repeat=3))
    ]
    interval = two_level(difference_SN, np.zeros((2, 3)), draws=60_000, confidence=0.6)
    assert interval.mean == pytest.approx(0.25)
    assert interval.n == 2
    assert interval.low == pytest.approx(np.quantile(every, 0.2), abs=1e-9)
    assert interval.high == pytest.approx(np.quantile(every, 0.8), abs=1e-9)


def test_a_two_level_bootstrap_holds_the_variance_of_both_levels():
    random = np.random.default_rng(0)
    S, N = 40, 60
    difference_SN = random.normal(0, 1, (S, 1)) + random.normal(0, 2, (1, N))
    interval = two_level(difference_SN, np.zeros((S, N)), confidence=0.6827, draws=4000)
    seeds, problems = difference_SN.mean(axis=1), difference_SN.mean(axis=0)
    expected = sqrt(seeds.var() / S + problems.var() / N)
    assert interval.half == pytest.approx(expected, rel=0.06)


def test_a_two_level_bootstrap_pairs_by_seed_and_problem():
    base_SN = np.random.default_rng(0).random((3, 50))
    interval = two_level(base_SN + 0.1, base_SN)
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_a_bootstrap_is_the_same_again_and_another_with_another_seed():
    values, base = np.random.default_rng(1).random((2, 4, 20))
    assert two_level(values, base) == two_level(values, base)
    assert two_level(values, base).low != two_level(values, base, seed=1).low
    assert iqm_interval(SCORES_RM) == iqm_interval(SCORES_RM)
    assert iqm_interval(SCORES_RM).low != iqm_interval(SCORES_RM, seed=1).low


def test_one_seed_has_no_bounds_and_none_has_nothing():
    assert isnan(two_level(np.ones((1, 3)), np.zeros((1, 3))).low)
    assert two_level(np.ones((1, 3)), np.zeros((1, 3))).mean == 1
    assert isnan(two_level(np.ones((0, 3)), np.zeros((0, 3))).mean)
    assert isnan(iqm_interval(np.ones((1, 3))).low)
    assert isnan(iqm_interval(np.ones((0, 3))).mean)


def test_shapes_that_do_not_fit_and_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        two_level(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="finite scores with two axes"):
        two_level(np.full((2, 3), np.nan), np.ones((2, 3)))
    with pytest.raises(ValueError, match="finite scores with two axes"):
        iqm(np.ones(3))
    with pytest.raises(ValueError, match="same tasks"):
        improvement(np.ones((2, 3)), np.ones((2, 2)))


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert iqm(np.array([[0.0, 10.0, 2.0, 4.0], [100.0, 3.0, 5.0, -50.0]])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    flat = np.sort(SCORES_RM.ravel())
    assert iqm(SCORES_RM) == pytest.approx(flat[6:18].mean())


def test_a_stratified_bootstrap_is_the_distribution_over_all_resamples_within_tasks():
    scores_RM = np.array([[0.0, 0.6], [0.3, 1.0]])
    every = [
        iqm(np.array([[scores_RM[a, 0], scores_RM[c, 1]], [scores_RM[b, 0], scores_RM[d, 1]]]))
        for a, b, c, d in product(range(2), repeat=4)
    ]
    interval = iqm_interval(scores_RM, draws=60_000, confidence=0.7)
    assert interval.mean == iqm(scores_RM)
    assert interval.n == 2
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(every, [0.15, 0.85], method="inverted_cdf")))


def test_a_profile_is_the_share_of_scores_above_each_threshold():
    taus = np.linspace(-0.1, 1.1, 13)
    expected = [np.mean([score > tau for score in SCORES_RM.ravel()]) for tau in taus]
    assert profile(SCORES_RM, taus) == pytest.approx(expected)
    assert list(profile(np.array([[0.5]]), np.array([0.5]))) == [0]


def test_a_profile_integrates_to_the_mean():
    taus = (np.arange(10_000) + 0.5) / 10_000
    assert profile(SCORES_RM, taus).mean() == pytest.approx(SCORES_RM.mean(), abs=1e-4)


def test_the_probability_of_improvement_is_the_share_of_pairs_won():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 4, (5, 3)), random.integers(0, 4, (4, 3))
    wins = [(a > b) + (a == b) / 2 for m in range(3) for a, b in product(x[:, m], y[:, m])]
    assert improvement(x, y) == pytest.approx(np.mean(wins))
    assert improvement(x, y) + improvement(y, x) == pytest.approx(1)
    u = scipy_stats.mannwhitneyu(x[:, 0], y[:, 0]).statistic
    assert improvement(x[:, :1], y[:, :1]) == pytest.approx(u / 20)


def test_the_interval_of_improvement_is_the_distribution_over_all_resamples_within_tasks():
    x, y = np.array([[0.2], [0.5]]), np.array([[0.1], [0.3]])
    every = [improvement(x[list(i)], y[list(j)]) for i in product(range(2), repeat=2) for j in product(range(2), repeat=2)]
    found = improvement_interval(x, y, draws=20_000, confidence=0.7)
    assert found.mean == 0.75
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.15, 0.85], method="inverted_cdf")))
    sure = improvement_interval(np.full((3, 2), 0.9), np.full((4, 2), 0.1))
    assert (sure.mean, sure.low, sure.high, sure.n) == pytest.approx((1, 1, 1, 3))
    assert np.isnan(improvement_interval(x[:1], y).low)
