"""What several samples of one problem are worth: pass@k and maj@k, unbiased, and their means over problems."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import comb

import numpy as np

from reports.inference import Interval, t_interval

MOST = 1000  # samples of a problem: binomials of more leave the range of a float


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the chance that k of n samples, c of them correct, hold a correct one; unbiased."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n, got n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """The chance that the answer most frequent among k of the n samples is right; unbiased, by counting all C(n, k) subsets.

    `right` says of each sample whether its answer is; an answer judged both ways counts by its share. Tied answers count evenly.
    A sample without an answer (None) does not vote; where none votes, the verdict is wrong. Exact up to rounding.
    """
    n = len(answers)
    if len(right) != n or not 1 <= k <= n or n > MOST:
        raise ValueError(f"maj_at_k needs a verdict for each answer and 1 ≤ k ≤ n ≤ {MOST}, got {len(right)} for n={n}, k={k}")
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for answer, verdict in zip(answers, right, strict=True):
        if answer is not None:
            verdicts[answer].append(bool(verdict))
    counts = sorted((len(said), sum(said) / len(said)) for said in verdicts.values())
    return _votes(tuple(counts), n)[k]


@lru_cache(maxsize=4096)
def _votes(counts: tuple[tuple[int, float], ...], n: int) -> list[float]:
    """maj@k for k = 0 … n of n samples, where each answer was given `count` times and is right to a share.

    Subsets in which a certain answer has v votes, none has more, and s others have v too, are the coefficients of
    x^(k − v) y^s in a product over the other answers, with c of n samples each: (1 + x)^c where c < v, and
    Σ_(j < v) C(c, j) x^j + C(c, v) x^v y where not.
    """
    won = np.zeros(n + 1)
    for (count, share), answers in Counter(item for item in counts if item[1]).items():
        others = list(counts)
        others.remove((count, share))
        for v in range(1, count + 1):
            rivals = [c for c, _ in others if c >= v]
            small = n - count - sum(rivals)
            ways_SX = np.zeros((len(rivals) + 1, n - v + 1))
            ways_SX[0, : small + 1] = [comb(small, j) for j in range(min(small, n - v) + 1)]
            for c in rivals:
                more_SX = ways_SX.copy()
                for j in range(1, v):
                    more_SX[:, j:] += comb(c, j) * ways_SX[:, : n - v + 1 - j]
                if v <= n - v:
                    more_SX[1:, v:] += comb(c, v) * ways_SX[:-1, : n - 2 * v + 1]
                ways_SX = more_SX
            won[v:] += answers * share * comb(count, v) * (ways_SX / np.arange(1, len(rivals) + 2)[:, None]).sum(axis=0)
    return [min(1.0, float(won[k]) / comb(n, k)) for k in range(n + 1)]


def _band(scores: Iterable[float], confidence: float) -> Interval:
    interval = t_interval(scores, confidence)
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0)) if interval.n > 1 else interval


def pass_band(counts: Iterable[tuple[int, int]], k: int, confidence: float = 0.95) -> Interval:
    """Mean pass@k of problems, each (samples, correct ones), with its t interval over problems inside 0 … 1."""
    return _band((pass_at_k(n, c, k) for n, c in counts), confidence)


def maj_band(problems: Iterable[tuple[Sequence[str | None], Sequence[bool]]], k: int, confidence: float = 0.95) -> Interval:
    """Mean maj@k of problems, each (answers, verdicts), with its t interval over problems inside 0 … 1."""
    return _band((maj_at_k(answers, right, k) for answers, right in problems), confidence)
