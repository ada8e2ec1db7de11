"""Envelopes and areas against squares that are counted."""

from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats import envelope, envelope_area, hypervolume

squares = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8)


def height(points, kl):
    return max((reward for x, reward in points if x <= kl), default=-inf)


def test_an_envelope_keeps_what_no_point_of_less_kl_reaches():
    points = [(3.0, 0.5), (1.0, 0.4), (2.0, 0.3), (1.0, 0.2), (0.0, 0.1), (4.0, 0.5)]
    assert envelope(points) == [(0.0, 0.1), (1.0, 0.4), (3.0, 0.5)]
    assert envelope([]) == []


@settings(deadline=None)
@given(squares)
def test_an_envelope_is_the_best_reward_within_each_budget_of_kl(points):
    corners = envelope(points)
    for kl in np.arange(0, 7, 0.5):
        assert height(corners, kl) == height(points, kl)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(corners))


@settings(deadline=None)
@given(squares, squares)
def test_the_area_between_envelopes_is_the_squares_between_them(points, base):
    start = max(min(points)[0], min(base)[0])
    end = max(kl for kl, _ in points + base)
    expected = sum(height(points, kl) - height(base, kl) for kl in range(start, end))
    assert envelope_area(points, base) == pytest.approx(expected)
    assert envelope_area(base, points) == pytest.approx(-expected)


def test_an_envelope_above_another_by_a_constant_has_that_times_the_width():
    base = [(0.0, 0.2), (0.5, 0.4), (2.0, 0.6)]
    assert envelope_area([(kl, reward + 0.1) for kl, reward in base], base) == pytest.approx(0.2)


@settings(deadline=None)
@given(squares, st.tuples(st.integers(0, 7), st.integers(-1, 6)))
def test_the_hypervolume_is_the_squares_that_a_point_dominates(points, reference):
    kl, reward = reference
    counted = sum(any(x <= left and y >= low + 1 for x, y in points) for left in range(kl) for low in range(reward, 7))
    assert hypervolume(points, reference) == pytest.approx(counted)


def test_what_is_beyond_the_reference_adds_no_hypervolume():
    assert hypervolume([(0.5, 0.5)], (1.0, 0.0)) == pytest.approx(0.25)
    assert hypervolume([(0.5, 0.5), (2.0, 0.9), (0.1, -1.0)], (1.0, 0.0)) == pytest.approx(0.25)
    assert hypervolume([], (1.0, 0.0)) == 0


def test_points_that_are_not_finite_and_sides_without_points_are_refused():
    with pytest.raises(ValueError, match="finite points"):
        envelope([(0.0, float("nan"))])
    with pytest.raises(ValueError, match="a point of each"):
        envelope_area([(0.0, 1.0)], [])
