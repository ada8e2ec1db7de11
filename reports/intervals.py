"""The ranked interval plot as geometry: percent of the width, so that it fits any screen without scaling text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import pandas as pd

from reports.curves import ticks
from reports.looks import Look
from reports.numbers import percent


@dataclass(frozen=True)
class Bar:
    """One arm: its mean, its interval where there is one, and a dot a seed."""

    label: str
    look: Look
    mean: float
    low: float | None
    high: float | None
    dots: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Ranking:
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    base: float | None


def ranking(frame: pd.DataFrame, looks: Mapping[str, Look]) -> Ranking | None:
    """The scored arms of a leaderboard, best first; None where nothing is scored."""
    rows = [row for row in frame.to_dict("records") if row["scores"]]
    if not rows:
        return None
    tops = [value for row in rows for value in (row["pass@1_high"], *row["scores"].values()) if isfinite(value)]
    marks = [tick for tick in ticks(0.0, min(1.0, max(tops)), 6) if tick <= 1 + 1e-9]
    end = marks[-1]

    def at(share: float) -> float:
        return round(100 * min(max(share / end, 0.0), 1.0), 2)

    bars: list[Bar] = []
    for row in rows:
        bounded = isfinite(row["pass@1_low"])
        dots = tuple((at(score), f"seed {seed}: {percent(score)}%") for seed, score in row["scores"].items())
        low, high = (at(row["pass@1_low"]), at(row["pass@1_high"])) if bounded else (None, None)
        bars.append(Bar(row["arm"], looks[row["arm"]], at(row["pass@1"]), low, high, dots))
    base = next((at(row["pass@1"]) for row in rows if row["base"]), None)
    return Ranking(tuple(bars), tuple((at(mark), percent(mark, 0)) for mark in marks), base)
