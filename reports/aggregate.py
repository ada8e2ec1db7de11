"""Arms over all tasks of a model: interquartile mean, chance of a better run than the base's, and performance profile.

Agarwal et al. 2108.13264. An arm takes part with the seeds that it has finished on every task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from reports.bootstrap import DRAWS
from reports.curves import Panel, Series, uneven_panel
from reports.data import Data, data
from reports.leaderboard import Board, is_base
from reports.load import Comparison
from reports.looks import Look
from reports.numbers import span
from reports.quantities import Axis, share
from reports.stats import Interval, improvement_interval, iqm_interval, profile

TAU = Axis("tau", "τ, pass@1 in %", ("tau",))
PROFILE = share(
    "tau", "Performance profile, %", "The share of an arm's runs, over all tasks, that score above τ: the higher, the better."
)
POINTS = 51  # of a profile


@dataclass(frozen=True)
class Row:
    arm: str
    n: int  # seeds
    iqm: Interval
    better: Interval | None  # P(a run of it is better than one of the base); None for the base


@dataclass(frozen=True)
class Aggregate:
    model: str
    caption: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    profile: Panel
    data: Data


def aggregates(comparison: Comparison, boards: Sequence[Board], looks: Mapping[str, Look]) -> list[Aggregate]:
    """One for each model that was asked on two tasks or more, and of which an arm has a seed on all of them."""
    by_model = {model: [b for b in boards if b.model == model] for model in dict.fromkeys(b.model for b in boards)}
    return [one for of_model in by_model.values() if (one := _aggregate(comparison, of_model, looks))]


def _aggregate(comparison: Comparison, boards: Sequence[Board], looks: Mapping[str, Look]) -> Aggregate | None:
    if len(boards) < 2:
        return None
    arms = list(dict.fromkeys(str(row["arm"]) for board in boards for row in board.frame.to_dict("records")))
    tables: dict[str, np.ndarray] = {}
    for arm in arms:
        by_task = [{row["arm"]: row["scores"] for row in board.frame.to_dict("records")}.get(arm, {}) for board in boards]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_task)))
        if seeds:
            tables[arm] = np.array([[scores[seed] for scores in by_task] for seed in seeds])
    if not tables:
        return None
    base = next((arm for arm in tables if any(is_base(run) and run.label == arm for run in comparison.runs)), None)
    rows = [
        Row(
            arm,
            len(table),
            iqm_interval(table),
            improvement_interval(table, tables[base]) if base is not None and arm != base else None,
        )
        for arm, table in tables.items()
    ]
    rows.sort(key=lambda row: -row.iqm.mean)
    taus = np.linspace(0.0, 1.0, POINTS)
    above = {arm: profile(table, taus) for arm, table in tables.items()}
    lines = [Series(arm, taus, heights, heights, heights) for arm, heights in above.items()]
    marks = [(x, f"{100 * x:.0f}") for x in (0, 0.25, 0.5, 0.75, 1)]
    tasks = ", ".join(board.task for board in boards)
    caption = (
        f"{tasks}: {span([len(t) for t in tables.values()], 'seed')} finished on every task. IQM: the mean of the middle half of "
        "all scores. Better than the base: the chance that a run of the arm beats one of the base on the same task, ties half, "
        f"mean over tasks. In brackets: 95% of {DRAWS:,} bootstraps that draw runs within each task, too narrow for few seeds "
        "(docs/statistics.md); none for one seed."
    )
    columns = ("arm", "seeds", "iqm", "iqm_low", "iqm_high", "better_than_base", "better_low", "better_high")
    nothing = Interval(nan, nan, nan, 0)
    listed = [(r.arm, r.n, *_numbers(r.iqm), *_numbers(r.better or nothing)) for r in rows]
    return Aggregate(
        boards[0].model,
        caption,
        tuple(rows),
        tuple(arm for arm in arms if arm not in tables),
        uneven_panel(PROFILE, TAU, lines, looks, marks),
        data("over-all-tasks", columns, listed),
    )


def _numbers(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high
