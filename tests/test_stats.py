"""The leaderboard's statistics against closed forms, enumeration and scipy."""

from itertools import combinations
from math import isnan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from reports.stats import Interval, paired, pass_at_k, t_interval, wilson

floats = st.floats(-1e3, 1e3, allow_nan=False)


def test_a_t_interval_of_two_values_is_the_closed_form():
    # t(1) is Cauchy, whose 97.5% quantile is tan(0.475 π) = 12.7062; s/√2 of (0, 1) is 1/2.
    interval = t_interval([0.0, 1.0])
    assert interval.mean == 0.5
    assert interval.half == pytest.approx(12.706204736 / 2)
    assert interval.n == 2


@given(st.lists(floats, min_size=2, max_size=12).filter(lambda v: max(v) - min(v) > 1e-6), st.floats(0.5, 0.99))
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


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_correct_one(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("case", [(3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(case):
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(*case)


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
