"""Intervals and tests against closed forms, enumeration, scipy and statsmodels."""

from itertools import permutations, product
from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.integrate import quad
from statsmodels.api import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from reports.stats import (
    Interval,
    clustered,
    detectable,
    holm,
    holm_confidence,
    paired,
    sign_flip,
    t_interval,
    t_test,
    tost,
    wilson,
)

floats = st.floats(-1e3, 1e3, allow_nan=False)
samples = st.lists(floats, min_size=2, max_size=12).filter(lambda v: max(v) - min(v) > 1e-6)
families = st.lists(st.integers(1, 1000).map(lambda x: x / 1000), min_size=1, max_size=7)


def test_a_t_interval_of_two_values_is_the_closed_form():
    # t(1) is Cauchy, whose 97.5% quantile is tan(0.475 π) = 12.7062; s/√2 of (0, 1) is 1/2.
    interval = t_interval([0.0, 1.0])
    assert interval.mean == 0.5
    assert interval.half == pytest.approx(12.706204736 / 2)
    assert interval.n == 2


@settings(deadline=None)
@given(samples, st.floats(0.5, 0.99))
def test_a_t_interval_is_scipys(values, confidence):
    result = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    interval = t_interval(values, confidence)
    assert (interval.low, interval.high) == pytest.approx((result.low, result.high), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("seeds", "half"), [(2, 8.98), (3, 2.48), (4, 1.59), (5, 1.24), (6, 1.05), (8, 0.84), (10, 0.72)])
def test_the_half_width_in_units_of_the_seed_deviation_is_as_tabulated(seeds, half):
    values = list(range(seeds))
    deviation = sqrt(sum((v - (seeds - 1) / 2) ** 2 for v in values) / (seeds - 1))
    assert t_interval(values).half / deviation == pytest.approx(half, abs=0.006)


def test_one_value_has_a_mean_no_bounds_and_says_so():
    interval = t_interval([0.4])
    assert interval.mean == 0.4
    assert isnan(interval.low)
    assert isnan(interval.high)
    assert interval.note == "1 seed: no interval"
    assert not interval.excludes(0)


def test_no_value_has_nothing_and_says_so():
    interval = t_interval([])
    assert isnan(interval.mean)
    assert interval.note == "no finished seed"
    assert not interval.excludes(0)


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        t_interval([0.1, float("nan")])


def test_an_interval_excludes_what_lies_outside_and_not_what_it_touches():
    assert Interval(1.0, 0.5, 1.5, 3).excludes(0)
    assert Interval(-1.0, -1.5, -0.5, 3).excludes(0)
    assert not Interval(0.5, 0.0, 1.0, 3).excludes(0)
    assert Interval(1.0, 0.5, 1.5, 3).note == ""


def test_a_paired_difference_is_scipys_paired_t_over_the_common_seeds():
    arm = {0: 0.50, 1: 0.58, 2: 0.61, 7: 0.9}
    base = {0: 0.20, 1: 0.25, 2: 0.33, 5: 0.1}
    result = scipy_stats.ttest_rel([arm[s] for s in (0, 1, 2)], [base[s] for s in (0, 1, 2)]).confidence_interval(0.95)
    interval = paired(arm, base)
    assert interval.n == 3
    assert (interval.low, interval.high) == pytest.approx((result.low, result.high))


def test_pairing_removes_what_the_seeds_share():
    base = {seed: 0.1 * seed for seed in range(5)}
    arm = {seed: value + 0.05 for seed, value in base.items()}
    assert paired(arm, base).half == pytest.approx(0, abs=1e-12)
    assert t_interval(arm.values()).half > 0.1


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
def test_wilson_is_scipys(case, confidence):
    k, n = case
    result = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    interval = wilson(k, n, confidence)
    assert (interval.low, interval.high) == pytest.approx((result.low, result.high), abs=1e-9)
    assert interval.low <= interval.mean <= interval.high


def test_wilson_of_nothing_has_no_bounds_and_of_more_than_all_is_refused():
    assert isnan(wilson(0, 0).low)
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(4, 3)


def test_a_clustered_interval_is_the_regression_on_samples_with_errors_clustered_by_problem():
    random = np.random.default_rng(0)
    right_AKN = random.random((2, 4, 30)) < random.beta(1, 2, 30)
    difference_KN = right_AKN[0].astype(float) - right_AKN[1]
    problems = np.tile(np.arange(30), (4, 1))
    fit = OLS(difference_KN.ravel(), np.ones(difference_KN.size)).fit(
        cov_type="cluster", cov_kwds={"groups": problems.ravel()}, use_t=True
    )
    arm, base = ({f"p{i}": float(x) for i, x in enumerate(right_KN.mean(axis=0))} for right_KN in right_AKN)
    interval = clustered(arm, base)
    assert interval.n == 30
    assert (interval.low, interval.high) == pytest.approx(tuple(fit.conf_int()[0]))


def test_a_clustered_interval_is_over_the_problems_that_both_have():
    assert clustered({"a": 1.0, "b": 0.5, "c": 0.0}, {"c": 0.5, "a": 0.25, "d": 1.0}) == t_interval([0.75, -0.5])
    assert clustered({"a": 1.0}, {"b": 1.0}).n == 0


@settings(deadline=None)
@given(samples, floats)
def test_the_t_test_is_scipys(values, null):
    assert t_test(values, null) == pytest.approx(scipy_stats.ttest_1samp(values, null).pvalue, abs=1e-9)


@settings(deadline=None)
@given(samples, st.floats(-2, 2), st.floats(0.5, 0.99))
def test_an_interval_excludes_what_its_test_rejects_at_that_level(values, null, confidence):
    p, interval = t_test(values, null), t_interval(values, confidence)
    if abs(p - (1 - confidence)) > 1e-9:
        assert interval.excludes(null) == (p < 1 - confidence)


@settings(deadline=None)
@given(samples, st.floats(0.01, 100), st.floats(0.5, 0.99))
def test_an_equivalence_is_decided_at_the_level_of_the_margin_that_is_harder_to_exclude(values, margin, confidence):
    level, interval = max(t_test(values, margin), t_test(values, -margin)), t_interval(values, confidence)
    inside = -margin < interval.low and interval.high < margin
    outside = interval.low > margin or interval.high < -margin
    if abs(level - (1 - confidence)) > 1e-9:
        assert (inside or outside) == (level < 1 - confidence)


def test_tests_of_fewer_than_two_values_reject_nothing():
    for values in ([], [3.0]):
        assert t_test(values) == 1
        assert tost(values, 10) == 1


def test_tests_of_equal_values_know_their_mean():
    assert t_test([0.5] * 3, 0.5) == 1
    assert t_test([0.5] * 3, 0.4) == 0
    assert tost([0.5] * 3, 0.6) == 0
    assert tost([0.5] * 3, 0.4) == 1


@settings(deadline=None)
@given(samples, st.floats(0.01, 1000))
def test_tost_is_statsmodels(values, margin):
    expected = ttost_paired(np.array(values), np.zeros(len(values)), -margin, margin)[0]
    assert tost(values, margin) == pytest.approx(expected, abs=1e-9)


def test_tost_refuses_a_margin_of_nothing():
    with pytest.raises(ValueError, match="margin above 0"):
        tost([0.1, 0.2], 0)


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_a_sign_flip_is_the_share_of_patterns_as_far_from_zero(differences):
    sums = [abs(sum(sign * x for sign, x in zip(signs, differences, strict=True)))
            for signs in product((-1, 1), repeat=len(differences))]  # fmt: skip
    assert sign_flip(differences) == np.mean([total >= abs(sum(differences)) for total in sums])


def test_a_sign_flip_of_n_seeds_cannot_go_under_its_floor():
    assert sign_flip([0.1] * 8) == 2 / 2**8
    assert sign_flip([0.1] * 5) == 0.0625
    assert sign_flip([]) == 1


def test_a_sign_flip_of_many_differences_is_drawn_reproducibly_and_close_to_scipys():
    differences = np.random.default_rng(1).normal(0.3, 1, 30)
    p = sign_flip(differences)
    expected = scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    ).pvalue
    assert p == sign_flip(differences) != sign_flip(differences, seed=1)
    assert p == pytest.approx(expected, abs=4 * sqrt(2 * p * (1 - p) / 20_000))


@pytest.mark.parametrize("pvalues", [[0.02], [0.01, 0.04, 0.03, 0.005], [0.5, 0.02, 0.02, 0.9, 0.001, 0.3]])
def test_holm_is_statsmodels(pvalues):
    assert holm(pvalues) == pytest.approx(list(multipletests(pvalues, method="holm")[1]))


def test_holm_does_not_depend_on_the_order_of_the_family():
    family = {0.01: 0.03, 0.02: 0.04, 0.5: 0.5}
    for order in permutations(family):
        assert holm(order) == pytest.approx([family[p] for p in order])
    assert holm([]) == []


@settings(deadline=None)
@given(families, st.sampled_from([0.8, 0.95]))
def test_an_interval_at_its_adjusted_confidence_excludes_its_null_exactly_where_holm_rejects(pvalues, confidence):
    alpha = 1 - confidence
    for p, adjusted, level in zip(pvalues, holm(pvalues), holm_confidence(pvalues, confidence), strict=True):
        assert confidence - 1e-12 <= level <= 1 - alpha / len(pvalues) + 1e-12
        if abs(adjusted - alpha) > 1e-9:
            assert (p < 1 - level) == (adjusted < alpha)


def test_the_adjusted_confidence_stays_where_holm_stops():
    assert holm_confidence([0.2, 0.001, 0.04]) == pytest.approx([0.975, 1 - 0.05 / 3, 0.975])
    assert holm_confidence([0.3]) == [0.95]


@pytest.mark.parametrize("seeds", [3, 5, 8, 30])
def test_the_smallest_detectable_difference_is_statsmodels(seeds):
    for power in (0.5, 0.8, 0.9):
        effect = TTestPower().solve_power(nobs=seeds, alpha=0.05, power=power, alternative="two-sided")
        assert detectable(0.02, seeds, power) == pytest.approx(0.02 * effect, rel=1e-4)


def test_the_smallest_detectable_difference_of_two_seeds_is_the_integral_over_their_spread():
    shift = detectable(1.0, 2) * sqrt(2)
    quantile = scipy_stats.t.ppf(0.975, 1)
    found = quad(lambda w: 2 * scipy_stats.norm.pdf(w) * scipy_stats.norm.sf(quantile * w - shift), 0, np.inf)[0]
    assert found == pytest.approx(0.8, abs=1e-6)


def test_the_smallest_detectable_difference_is_found_as_often_as_asked():
    random = np.random.default_rng(0)
    shift = detectable(1.0, 5)
    found = [t_interval(random.normal(shift, 1, 5)).low > 0 for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * sqrt(0.8 * 0.2 / 4000))


def test_the_smallest_detectable_difference_needs_two_seeds_and_a_deviation():
    assert isnan(detectable(0.1, 1))
    assert detectable(0.0, 3) == 0
    with pytest.raises(ValueError, match="standard deviation"):
        detectable(-0.1, 3)


@pytest.mark.parametrize("test", [t_interval, t_test, sign_flip, lambda values: tost(values, 1)])
def test_no_test_takes_what_is_not_finite(test):
    with pytest.raises(ValueError, match="needs finite values"):
        test([0.1, nan])
