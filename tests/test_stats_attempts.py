"""pass@k and maj@k against going through every subset."""

from collections import Counter
from itertools import combinations
from math import isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats import Interval, maj_at_k, maj_band, pass_at_k, pass_band, t_interval

given_answers = st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=9)


def vote(subset, right):
    """The chance that the winner among these answers is right, ties split evenly."""
    counts = Counter(answer for answer in subset if answer is not None)
    tied = [answer for answer, count in counts.items() if count == max(counts.values())]
    return sum(answer in right for answer in tied) / len(tied) if tied else 0


@settings(deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_correct_one(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("case", [(3, 4, 1), (3, 1, 0), (3, 1, 4), (3, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(case):
    with pytest.raises(ValueError, match="pass_at_k needs"):
        pass_at_k(*case)


@settings(deadline=None)
@given(given_answers, st.sets(st.sampled_from("1234")))
def test_maj_at_k_is_the_mean_verdict_of_every_vote_of_k(answers, right):
    verdicts = [answer in right for answer in answers]
    for k in range(1, len(answers) + 1):
        votes = [vote(subset, right) for subset in combinations(answers, k)]
        assert maj_at_k(answers, verdicts, k) == pytest.approx(np.mean(votes), abs=1e-12)


def test_a_vote_of_one_is_the_share_that_is_right_and_a_vote_of_all_is_the_plurality():
    answers = ["7"] * 4 + ["8"] * 3 + ["9"] * 2 + [None]
    assert maj_at_k(answers, [a == "8" for a in answers], 1) == pytest.approx(0.3)
    assert maj_at_k(answers, [a == "7" for a in answers], 10) == 1
    assert maj_at_k(answers, [a == "8" for a in answers], 10) == 0


def test_votes_that_tie_share_the_verdict_and_no_vote_is_wrong():
    assert maj_at_k(["1", "2"], [True, False], 2) == 0.5
    assert maj_at_k(["1", "2", "3"], [True, False, True], 3) == pytest.approx(2 / 3)
    assert maj_at_k([None, None], [False, False], 2) == 0


def test_maj_at_k_of_hundreds_of_samples_is_what_drawing_them_finds():
    random = np.random.default_rng(0)
    answers = [str(a) for a in random.geometric(0.12, 256)]
    counts = np.array(list(Counter(answers).values()))
    names = np.array(list(Counter(answers)))
    drawn = random.multivariate_hypergeometric(counts, 12, size=20_000)
    tied = drawn == drawn.max(axis=1, keepdims=True)
    won = (tied * (names == "1")).sum(axis=1) / tied.sum(axis=1)
    assert maj_at_k(answers, [a == "1" for a in answers], 12) == pytest.approx(won.mean(), abs=4 * won.std() / 20_000**0.5)


@pytest.mark.parametrize("k", [0, 3])
def test_maj_at_k_refuses_impossible_counts(k):
    with pytest.raises(ValueError, match="maj_at_k needs"):
        maj_at_k(["1", "2"], [True, False], k)
    with pytest.raises(ValueError, match="maj_at_k needs"):
        maj_at_k(["1", "2"], [True], 1)


def test_an_answer_that_is_judged_both_ways_counts_by_its_share():
    assert maj_at_k(["1", "1", "2"], [True, False, False], 3) == pytest.approx(0.5)
    assert maj_at_k(["1", "1", "2"], [True, False, False], 1) == pytest.approx(1 / 3)
    assert maj_at_k(["1", "1", "2", "2"], [True, False, True, True], 2) == pytest.approx((0.5 + 1 + 4 * 0.75) / 6)


def test_a_band_is_the_interval_over_problems_within_what_is_possible():
    counts = [(8, 2), (8, 5), (8, 1), (8, 4)]
    expected = t_interval([pass_at_k(n, c, 2) for n, c in counts])
    band = pass_band(counts, 2)
    assert (band.mean, band.n) == (expected.mean, 4)
    assert (band.low, band.high) == (expected.low, min(1, expected.high))
    assert expected.high > 1
    problems = [(["1", "2", "1"], [True, False, True]), (["5", "5", "6"], [False, False, True])]
    assert maj_band(problems, 3).mean == 0.5
    assert maj_band(problems, 3, confidence=0.5).low == pytest.approx(0.0)
    assert maj_band(problems, 3).low == 0


def test_a_band_of_one_problem_has_no_bounds_and_of_none_nothing():
    band = pass_band([(4, 2)], 1)
    assert band.mean == 0.5
    assert isnan(band.low)
    assert isnan(pass_band([], 1).mean)
    assert isinstance(maj_band([], 1), Interval)
