"""Seeded bootstraps, and aggregates over several tasks (Agarwal et al. 2108.13264). R runs, M tasks, S seeds, N problems."""

from __future__ import annotations

from math import nan

import numpy as np
from scipy.stats import rankdata, trim_mean

from reports.inference import Interval

DRAWS = 2000


def _table(scores: np.ndarray, name: str) -> np.ndarray:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"{name} needs a table of finite scores with two axes, got shape {table.shape}")
    return table


def _percentiles(mean: float, drawn: np.ndarray, confidence: float, n: int) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), n)


def _weights(random: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, over n; shape (draws, n)."""
    drawn_DN = random.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn_DN.ravel(), minlength=draws * n).reshape(draws, n) / n


def two_level(
    values_SN: np.ndarray, base_SN: np.ndarray, seed: int = 0, draws: int = DRAWS, confidence: float = 0.95
) -> Interval:
    """The mean of `values − base`, paired by seed and problem, with percentiles of it over drawn seeds and drawn problems.

    Both are drawn with replacement and independently, since every seed answers the same problems (Owen 2007, the pigeonhole
    bootstrap). Mean scores of a problem, shape (S, N); n is S. Few seeds make it too narrow: docs/statistics.md says how much.
    """
    values, base = _table(values_SN, "two_level"), _table(base_SN, "two_level")
    if values.shape != base.shape:
        raise ValueError(f"two_level needs equal shapes, got {values.shape} and {base.shape}")
    S, N = values.shape
    if S == 0 or N == 0:
        return Interval(nan, nan, nan, 0)
    difference_SN = values - base
    mean = float(difference_SN.mean())
    if S == 1:
        return Interval(mean, nan, nan, 1)
    random = np.random.default_rng(seed)
    weights_DS, weights_DN = _weights(random, draws, S), _weights(random, draws, N)
    return _percentiles(mean, np.einsum("dn,dn->d", weights_DS @ difference_SN, weights_DN), confidence, S)


def iqm(scores_RM: np.ndarray) -> float:
    """The mean of the middle half of all scores of R runs on M tasks."""
    return float(trim_mean(_table(scores_RM, "iqm").ravel(), 0.25))


def iqm_interval(scores_RM: np.ndarray, seed: int = 0, draws: int = DRAWS, confidence: float = 0.95) -> Interval:
    """`iqm` with percentiles of it over runs that are drawn with replacement, for each task by itself; n is R."""
    scores = _table(scores_RM, "iqm_interval")
    R, M = scores.shape
    if R < 2 or M == 0:
        return Interval(iqm(scores) if scores.size else nan, nan, nan, R if M else 0)
    chosen_DRM = np.random.default_rng(seed).integers(R, size=(draws, R, M))
    drawn = scores[chosen_DRM, np.arange(M)].reshape(draws, -1)
    return _percentiles(iqm(scores), trim_mean(drawn, 0.25, axis=1), confidence, R)


def profile(scores_RM: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """The share of all scores above each τ."""
    scores = _table(scores_RM, "profile")
    return (scores[None] > np.asarray(taus, dtype=float)[:, None, None]).mean(axis=(1, 2))


def improvement(x_RM: np.ndarray, y_RM: np.ndarray) -> float:
    """P(X > Y) + P(X = Y)/2 for a run of each on the same task, averaged over tasks: Mann and Whitney's U over its maximum."""
    x, y = _table(x_RM, "improvement"), _table(y_RM, "improvement")
    if x.shape[1] != y.shape[1] or not x.size or not y.size:
        raise ValueError(f"improvement needs runs of both on the same tasks, got shapes {x.shape} and {y.shape}")
    ranks = rankdata(np.concatenate([x, y]), axis=0)[: len(x)].sum(axis=0)
    return float(np.mean((ranks - len(x) * (len(x) + 1) / 2) / (len(x) * len(y))))


def improvement_interval(
    x_RM: np.ndarray, y_SM: np.ndarray, seed: int = 0, draws: int = DRAWS, confidence: float = 0.95
) -> Interval:
    """`improvement` with percentiles of it over runs of both that are drawn with replacement, for each task by itself; n is R."""
    mean = improvement(x_RM, y_SM)
    x, y = _table(x_RM, "improvement_interval"), _table(y_SM, "improvement_interval")
    (R, M), S = x.shape, len(y)
    if min(R, S) < 2:
        return Interval(mean, nan, nan, R)
    won_RSM = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    random = np.random.default_rng(seed)
    x_DRM, y_DSM = (np.stack([_weights(random, draws, n) for _ in range(M)], axis=-1) for n in (R, S))
    return _percentiles(mean, np.einsum("drm,rsm,dsm->d", x_DRM, won_RSM, y_DSM, optimize=True) / M, confidence, R)
