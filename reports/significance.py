"""Every pair of arms: are they told apart, and how large would a difference have to be?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan
from statistics import median
from typing import Any

import numpy as np

from reports.data import Data, data
from reports.numbers import percent, span
from reports.stats import Interval, detectable, holm, paired, t_test

LEVEL = 0.05


@dataclass(frozen=True)
class Pair:
    """One arm less another, over the seeds that both finished; p is adjusted for all pairs, nan for fewer than two seeds."""

    difference: Interval
    p: float
    detectable: float

    @property
    def real(self) -> bool:
        return self.p < LEVEL

    @property
    def said(self) -> str:
        if not isfinite(self.p):
            return ""
        return "p < .001" if self.p < 5e-4 else f"p = {self.p:.3f}".replace("0.", ".", 1)


@dataclass(frozen=True)
class Matrix:
    """A row of pairs for each arm but the last, best first: its difference to each that is ranked below it."""

    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Pair | None, ...]], ...]
    caption: str
    data: Data


def significance(frame: Any) -> Matrix | None:
    """All pairs of the scored arms of a leaderboard; None for fewer than two arms or where no two share two seeds."""
    scores = {row["arm"]: row["scores"] for row in frame.to_dict("records") if row["scores"]}
    asked = list(combinations(scores, 2))
    shared = {pair: sorted(scores[pair[0]].keys() & scores[pair[1]].keys()) for pair in asked}
    tested = [pair for pair in asked if len(shared[pair]) > 1]
    if not tested:
        return None
    gaps = {(a, b): [scores[a][seed] - scores[b][seed] for seed in shared[a, b]] for a, b in tested}
    adjusted = dict(zip(tested, holm([t_test(gaps[pair]) for pair in tested]), strict=True))
    found: dict[tuple[str, str], Pair] = {}
    for a, b in asked:
        least = detectable(float(np.std(gaps[a, b], ddof=1)), len(gaps[a, b])) if (a, b) in gaps else nan
        found[a, b] = Pair(paired(scores[a], scores[b]), adjusted.get((a, b), nan), least)
    real = sum(pair.real for pair in found.values())
    least = [pair.detectable for pair in found.values() if isfinite(pair.detectable)]
    caption = (
        f"Row less column in points of pass@1, with p of a paired t test over {span([len(v) for v in gaps.values()], 'seed')}, "
        f"adjusted by Holm for {len(tested)} pairs; bold where p < .05: {real} of {len(tested)}. Below each: the smallest true "
        "difference (SDD) that these seeds would tell apart in 80% of repetitions, from the measured spread of the pair and "
        f"before adjusting; the median pair needs {percent(median(least))} points."
    )
    columns = ("arm", "against", "difference", "low", "high", "seeds", "p_holm", "smallest_detectable_difference")
    rows = [
        (a, b, pair.difference.mean, pair.difference.low, pair.difference.high, pair.difference.n, pair.p, pair.detectable)
        for (a, b), pair in found.items()
    ]
    arms = tuple(scores)
    lines = tuple((a, tuple(found.get((a, b)) for b in arms[1:])) for a in arms[:-1])
    return Matrix(arms[1:], lines, caption, data("pairs", columns, rows))
