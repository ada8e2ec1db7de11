"""The few statistics that the leaderboard needs. Headlines are Student-t over seed means, fixed in advance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, isfinite, nan, sqrt

import numpy as np
from scipy.stats import norm, t


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values and where the true one plausibly lies; bounds are nan where `n` allows none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2

    @property
    def note(self) -> str:
        """Why there are no bounds, or nothing."""
        if isfinite(self.low):
            return ""
        return "no finished seed" if self.n == 0 else "1 seed: no interval"

    def excludes(self, value: float) -> bool:
        """Whether the interval exists and leaves `value` out."""
        return self.low > value or self.high < value


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """mean ± t(n − 1) · s / √n, with s the sample standard deviation. One value has no spread, so no bounds."""
    sample = np.asarray(list(values), dtype=float)
    if not np.isfinite(sample).all():
        raise ValueError("t_interval needs finite values")
    n = len(sample)
    if n == 0:
        return Interval(nan, nan, nan, 0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(mean, nan, nan, 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(sample.std(ddof=1)) / sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Mapping[int, float], base: Mapping[int, float], confidence: float = 0.95) -> Interval:
    """The t interval of `values − base`, seed by seed, over the seeds that both have."""
    return t_interval((values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())), confidence)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the chance that k of n samples, c of them correct, hold a correct one; unbiased."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n, got n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for k successes of n trials."""
    if not 0 <= k <= n:
        raise ValueError(f"wilson needs 0 ≤ k ≤ n, got k={k}, n={n}")
    if n == 0:
        return Interval(nan, nan, nan, 0)
    z = float(norm.ppf((1 + confidence) / 2))
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half, n)
