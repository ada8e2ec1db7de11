"""Methods against tasks and methods against models, as coloured tables: where each does well, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from reports.data import Data, data
from reports.leaderboard import Board
from reports.load import Comparison
from reports.numbers import percent, points, span

LEVELS = 9  # shades


@dataclass(frozen=True)
class Cell:
    """What an arm reached there, or why nothing is known; the shade grows from the lowest to the highest of the map."""

    score: float
    half: float
    delta: float
    real: bool  # whether the interval of the difference to the base leaves 0 out
    level: int
    missing: str

    @property
    def text(self) -> str:
        return percent(self.score)

    @property
    def gain(self) -> str:
        return points(self.delta) if isfinite(self.delta) else ""


@dataclass(frozen=True)
class Map:
    title: str
    held: str  # what all cells have in common
    across: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    caption: str
    data: Data


def _missing(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not asked"
    said = [f"{row['failed']} failed" if row["failed"] else "", f"{row['absent']} to go" if row["absent"] else ""]
    return ", ".join(filter(None, said)) or "no score"


def _cell(row: dict[str, Any] | None, low: float, high: float) -> Cell:
    if row is None or not isfinite(row["pass@1"]):
        nothing = float("nan")
        return Cell(nothing, nothing, nothing, False, 0, _missing(row))
    level = round(LEVELS * (row["pass@1"] - low) / (high - low)) if high > low else 0
    real = row["delta_low"] > 0 or row["delta_high"] < 0
    return Cell(row["pass@1"], (row["pass@1_high"] - row["pass@1_low"]) / 2, row["delta"], real, level, "")


def _map(title: str, held: str, across: str, boards: Sequence[Board], key: Callable[[Board], str], arms: Sequence[str]) -> Map:
    found = {key(board): {row["arm"]: row for row in board.frame.to_dict("records")} for board in boards}
    rows = {arm: {column: found[column].get(arm) for column in found} for arm in arms}
    scores = [row["pass@1"] for cells in rows.values() for row in cells.values() if row and isfinite(row["pass@1"])]
    low, high = (min(scores), max(scores)) if scores else (0.0, 0.0)
    counts = [row["done"] for cells in rows.values() for row in cells.values() if row and row["done"]]
    split = boards[0].split
    caption = (
        f"Pass@1 on the {split} split in percent, mean over {span(counts, 'finished seed')}, ± half of its 95% t interval over "
        "seeds where there are two or more; below it the points gained over the base on the same seeds, bold where their 95% "
        f"paired t interval leaves 0 out. Shades from the lowest of the map ({percent(low)}) to the highest ({percent(high)})."
    )
    columns = (across, "arm", "pass@1", "half_of_95%_t_interval", "seeds", "delta", "delta_low", "delta_high", "why_missing")
    listed = [
        (column, arm, row["pass@1"], (row["pass@1_high"] - row["pass@1_low"]) / 2, row["done"],
         row["delta"], row["delta_low"], row["delta_high"], "" if isfinite(row["pass@1"]) else _missing(row))
        if row else (column, arm, None, None, 0, None, None, None, _missing(row))
        for arm, cells in rows.items() for column, row in cells.items()
    ]  # fmt: skip
    drawn = tuple((arm, tuple(_cell(row, low, high) for row in cells.values())) for arm, cells in rows.items())
    return Map(title, held, across, tuple(found), drawn, caption, data(f"{across}s-{held}".strip("-"), columns, listed))


def maps(comparison: Comparison, boards: Sequence[Board]) -> list[Map]:
    """A map of method × task for each model and of method × model for each task, where there are several."""
    tasks = list(dict.fromkeys(board.task for board in boards))
    models = list(dict.fromkeys(board.model for board in boards))
    found: list[Map] = []
    for several, held, title, across, outer, inner in (
        (tasks, models, "Method × task", "task", lambda b: b.model, lambda b: b.task),
        (models, tasks, "Method × architecture", "model", lambda b: b.task, lambda b: b.model),
    ):
        for one in held if len(several) > 1 else ():
            chosen = [board for board in boards if outer(board) == one]
            arms = [arm for arm in comparison.labels if any(arm in set(board.frame["arm"]) for board in chosen)]
            found.append(_map(title, one if len(held) > 1 else "", across, chosen, inner, arms))
    return found
