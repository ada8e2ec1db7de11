"""Reward against KL: what an arm reaches within a budget of KL, and areas that compare two. Points are (KL, reward)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import inf, isfinite

Point = tuple[float, float]


def envelope(points: Iterable[Point]) -> list[Point]:
    """The corners of the highest reward reached at most at each KL: a staircase, rising in both; nothing is interpolated."""
    corners: list[Point] = []
    best = -inf
    for kl, reward in sorted(points, key=lambda point: (point[0], -point[1])):
        if not isfinite(kl) or not isfinite(reward):
            raise ValueError(f"envelope needs finite points, got ({kl}, {reward})")
        if reward > best:
            corners.append((kl, reward))
            best = reward
    return corners


def _area(corners: list[Point], start: float, end: float) -> float:
    """The integral of the staircase from start, where it has begun, to end."""
    edges = [max(kl, start) for kl, _ in corners] + [end]
    return sum(reward * max(0.0, right - left) for (_, reward), (left, right) in zip(corners, pairwise(edges), strict=True))


def envelope_area(points: Iterable[Point], base: Iterable[Point]) -> float:
    """The signed area between the envelopes of `points` and `base`, in reward × KL; above 0 where the first is higher.

    From the KL at which both have a point to the largest of either: an envelope stays at its highest reward, which a larger
    budget of KL also allows.
    """
    points, base = list(points), list(base)
    ours, theirs = envelope(points), envelope(base)
    if not ours or not theirs:
        raise ValueError("envelope_area needs a point of each")
    start, end = max(ours[0][0], theirs[0][0]), max(kl for kl, _ in points + base)
    return _area(ours, start, end) - _area(theirs, start, end)


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The area of (KL, reward) that some point is at least as good as, down to the reference: a larger KL and a lower reward."""
    kl, reward = reference
    inside = [(x, y) for x, y in points if x <= kl and y >= reward]
    if not inside:
        return 0.0
    corners = envelope(inside)
    return _area([(x, y - reward) for x, y in corners], corners[0][0], kl)
