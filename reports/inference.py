"""Intervals and tests on differences. Headlines are Student-t over seed means, fixed in advance.

Which question each answers, and how often each is right: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import TypeVar

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import nct, norm, t

Key = TypeVar("Key", bound=Hashable)

ENUMERATED = 16  # differences: up to 2^16 sign patterns are gone through, of more a sample
FLIPS = 20_000  # sign patterns in that sample


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


def _finite(values: Iterable[float], name: str) -> np.ndarray:
    sample = np.asarray(list(values), dtype=float)
    if not np.isfinite(sample).all():
        raise ValueError(f"{name} needs finite values")
    return sample


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """mean ± t(n − 1) · s / √n, with s the sample standard deviation. One value has no spread, so no bounds."""
    sample = _finite(values, "t_interval")
    n = len(sample)
    if n == 0:
        return Interval(nan, nan, nan, 0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(mean, nan, nan, 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * float(sample.std(ddof=1)) / sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _differences(values: Mapping[Key, float], base: Mapping[Key, float]) -> list[float]:
    return [value - base[key] for key, value in values.items() if key in base]


def paired(values: Mapping[int, float], base: Mapping[int, float], confidence: float = 0.95) -> Interval:
    """The t interval of `values − base`, seed by seed, over the seeds that both have."""
    return t_interval((values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())), confidence)


def clustered(values: Mapping[str, float], base: Mapping[str, float], confidence: float = 0.95) -> Interval:
    """The interval of the mean of `values − base` over the problems that both have; each value is a problem's mean score.

    It is about the checkpoints at hand on other problems of the kind: samples of one problem count together, so the error
    is that of a regression whose errors are clustered by problem (Miller 2411.00640), with quantiles of t(n − 1).
    """
    return t_interval(_differences(values, base), confidence)


def _error(values: Iterable[float], name: str) -> tuple[float, float, int]:
    """Mean, its standard error and the degrees of freedom; an error of nan for fewer than two values."""
    sample = _finite(values, name)
    n = len(sample)
    if n < 2:
        return (float(sample.mean()) if n else nan), nan, n - 1
    return float(sample.mean()), float(sample.std(ddof=1)) / sqrt(n), n - 1


def _upper(mean: float, error: float, freedom: int) -> float:
    """P(T > mean / error), with its limits where there is no error."""
    if error == 0:
        return 0.5 if mean == 0 else float(mean < 0)
    return float(t.sf(mean / error, freedom))


def t_test(values: Iterable[float], null: float = 0.0) -> float:
    """Two-sided p of the mean being `null`: below 1 − c exactly where `t_interval(values, c)` excludes `null`.

    1 for fewer than two values, which exclude nothing. A verdict of equivalence within ±m is given at the level
    max(t_test(values, m), t_test(values, −m)): there the interval has both margins outside it.
    """
    mean, error, freedom = _error(values, "t_test")
    return 1.0 if freedom < 1 else 2 * _upper(abs(mean - null), error, freedom)


def tost(differences: Iterable[float], margin: float) -> float:
    """p of two one-sided tests: small where the mean lies between −margin and margin (Schuirmann 1987)."""
    if not margin > 0:
        raise ValueError(f"tost needs a margin above 0, got {margin}")
    mean, error, freedom = _error(differences, "tost")
    if freedom < 1:
        return 1.0
    return max(_upper(margin + mean, error, freedom), _upper(margin - mean, error, freedom))


def sign_flip(differences: Iterable[float], seed: int = 0) -> float:
    """Two-sided p of the mean under all sign patterns; of more than 16 differences, under 20,000 drawn ones and the true one.

    Exact where differences are symmetric about 0 without an effect. Descriptive below 10 seeds: n cannot go under 2^(1 − n).
    """
    sample = _finite(differences, "sign_flip")
    n = len(sample)
    if n == 0:
        return 1.0
    if n <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        drawn = np.random.default_rng(seed).choice((-1, 1), size=(FLIPS, n))
        signs = np.concatenate([np.ones((1, n)), drawn])
    sums = np.abs(signs @ sample)
    return float(np.mean(sums >= abs(sample.sum()) - 1e-12 * np.abs(sample).sum()))


def holm(pvalues: Sequence[float]) -> list[float]:
    """p-values adjusted for the family they are of, in the same order (Holm 1979)."""
    adjusted, least = [1.0] * len(pvalues), 0.0
    for rank, which in enumerate(np.argsort(pvalues, kind="stable")):
        least = max(least, min(1.0, pvalues[which] * (len(pvalues) - rank)))
        adjusted[which] = least
    return adjusted


def holm_confidence(pvalues: Sequence[float], confidence: float = 0.95) -> list[float]:
    """The confidence of each interval of a family, such that it excludes its null exactly where Holm rejects.

    The i-th smallest of m two-sided p-values is asked for 1 − (1 − confidence)/(m − i + 1); from the first that does not
    reach it, all stay there.
    """
    levels, level = [confidence] * len(pvalues), nan
    stopped = False
    for rank, which in enumerate(np.argsort(pvalues, kind="stable")):
        if not stopped:
            level = (1 - confidence) / (len(pvalues) - rank)
            stopped = pvalues[which] >= level
        levels[which] = 1 - level
    return levels


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


def detectable(sd: float, seeds: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest true difference above 0 for which the interval of `paired` lies above 0 with probability `power`.

    `sd` is the standard deviation of the differences between seeds; the statistic is then noncentral t. nan for one seed.
    """
    if sd < 0:
        raise ValueError(f"detectable needs a standard deviation of at least 0, got {sd}")
    if seeds < 2:
        return nan
    freedom = seeds - 1
    quantile = float(t.ppf((1 + confidence) / 2, freedom))

    def missing(shift: float) -> float:
        return power - float(nct.sf(quantile, freedom, shift))

    far = quantile + 1
    while missing(far) > 0:
        far *= 2
    return float(root_scalar(missing, bracket=(0, far)).root) * sd / sqrt(seeds)
