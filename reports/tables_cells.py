"""The one value that every paper table is: blocks of rows of typed cells, published ones first, and why a cell is empty."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

from reports.finding import ENOUGH_SEEDS
from reports.load import Comparison, ReportError, Run, by_seed
from reports.numbers import DASH, more_nats, nats, percent, points, si, signed, span, whole
from reports.stats import Interval, t_interval

PUBLISHED = Path(__file__).with_name("published.toml")
SECOND_HAND = "~"


@dataclass(frozen=True)
class Unit:
    """How a number of it is printed, and how half of an interval's width is."""

    write: Callable[[float], str]
    half: Callable[[float], str]


def _two(value: float) -> str:
    return f"{value:.2f}"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _signed_one(value: float) -> str:
    return signed(value, _one(abs(value)))


def _signed(value: float) -> str:
    return si(value) if value < 0 else f"+{si(value)}"


UNITS = {
    "share": Unit(percent, percent),  # 0 to 1, printed in percent
    "difference of shares": Unit(points, percent),  # printed in percentage points
    "points": Unit(_signed_one, _one),  # percentage points
    "nats": Unit(nats, nats),
    "difference in nats": Unit(more_nats, nats),
    "perplexity": Unit(_two, _two),
    "violation": Unit(_two, _two),
    "amount": Unit(si, si),
    "signed amount": Unit(_signed, si),
    "whole": Unit(whole, whole),
}


@dataclass(frozen=True)
class Cell:
    """Text, or a number with its unit and, where `n` seeds allow one, its interval; nan and a reason where there is none."""

    value: str | float
    unit: str = "text"
    low: float = nan
    high: float = nan
    n: int = 0
    reason: str = ""

    @property
    def empty(self) -> bool:
        return isinstance(self.value, float) and isnan(self.value)

    @property
    def text(self) -> str:
        """Rounded: `58.1 ± 4.3`, or `58.1 [53.0, 61.8]` where the interval is not symmetric."""
        if isinstance(self.value, str):
            return self.value
        if self.empty:
            return DASH
        unit = UNITS[self.unit]
        said = unit.write(self.value)
        if not isfinite(self.low):
            return said
        if abs(self.low + self.high - 2 * self.value) <= 1e-6 * (self.high - self.low):
            return f"{said} ± {unit.half((self.high - self.low) / 2)}"
        return f"{said} [{unit.write(self.low)}, {unit.write(self.high)}]"


@dataclass(frozen=True)
class Block:
    """Rows under one header. `source` is the paper, or nothing for what was measured here."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    source: str = ""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for row in self.rows for cell in row)

    @property
    def named(self) -> str:
        return f"Published: {self.title} ({self.source})" if self.source else f"Measured: {self.title}"


@dataclass(frozen=True)
class Table:
    style: str
    title: str
    caption: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]

    @property
    def reasons(self) -> dict[str, int]:
        """Why cells are empty, numbered in the order of appearance."""
        found = dict.fromkeys(cell.reason for block in self.blocks for cell in block.cells if cell.reason)
        return {reason: number for number, reason in enumerate(found, start=1)}


def published(style: str) -> tuple[Block, ...]:
    """What papers printed in the shape of that style; nothing where they print a figure only."""
    return tuple(map(_published, tomllib.loads(PUBLISHED.read_text(encoding="utf-8")).get(style, [])))


def _published(said: Mapping[str, Any]) -> Block:
    rows: list[tuple[Cell, ...]] = []
    for (name, *values), row_unit in zip(
        said["rows"], said["units"] if "by" in said else [None] * len(said["rows"]), strict=True
    ):
        units = [row_unit] * len(values) if row_unit else said["units"]
        rows.append((Cell(name), *(_transcribed(value, unit) for value, unit in zip(values, units, strict=True))))
    mark = f", {SECOND_HAND} transcribed second-hand" if said["second_hand"] else ""
    return Block(said["title"], tuple(said["header"]), tuple(rows), f"{said['source']}, {said['version']}{mark}")


def _transcribed(value: str | float, unit: str) -> Cell:
    if value == "":
        return Cell(nan, unit, reason="not among the numbers transcribed here")
    return Cell(value, unit) if isinstance(value, str) else Cell(float(value), unit)


def table(
    comparison: Comparison,
    style: str,
    caption: str,
    blocks: Sequence[Block],
    notes: Sequence[str] = (),
    interval: str = "the 95% interval, Student-t over seeds",
) -> Table:
    """The published blocks of a style, the measured ones, and notes on units, intervals and seeds that the cells call for."""
    every = (*published(style), *blocks)
    cells = [cell for block in every for cell in block.cells]
    measured = [cell for block in blocks for cell in block.cells if cell.n]
    said: list[str] = []
    if not any(block.source for block in every):
        said.append("The papers print no such table, or a figure only: nothing is quoted beside what was measured.")
    units = {cell.unit for cell in cells}
    if "difference of shares" in units:
        said.append("Scores are in percent, their differences in percentage points.")
    elif "share" in units:
        said.append("Scores and shares are in percent.")
    if any(isfinite(cell.low) for cell in measured):
        said.append(f"Behind ±, or in brackets: {interval}.")
    if measured:
        counts = [cell.n for cell in measured]
        few = f", fewer than {ENOUGH_SEEDS}, so preliminary" if min(counts) < ENOUGH_SEEDS else ""
        alone = "; one seed gives no interval" if min(counts) == 1 else ""
        said.append(f"Measured on {span(counts, 'seed')}{few}{alone}.")
    return Table(style, f"{comparison.name}: {comparison.question}", caption, every, (*said, *notes))


def refuse(comparison: Comparison, style: str, needs: str) -> ReportError:
    """What to raise where a comparison cannot fill a style."""
    return ReportError(Path("comparisons") / comparison.name, f"--style {style} needs {needs}")


def arms(comparison: Comparison, task: str, model: str) -> dict[str, list[Run]]:
    """The runs of each arm of that task and model, in the order of the comparison."""
    found: dict[str, list[Run]] = {}
    for run in comparison.of(task, model):
        found.setdefault(run.label, []).append(run)
    return found


def cell(interval: Interval, unit: str, reason: str) -> Cell:
    """An interval as a cell; the reason stands where it is of nothing."""
    return Cell(interval.mean, unit, interval.low, interval.high, interval.n, "" if interval.n else reason)


def measured(runs: Sequence[Run], name: str, unit: str) -> Cell:
    """The t interval over seeds of what finished runs logged last under that name."""
    return cell(t_interval(by_seed(runs, name).values()), unit, why(runs, name))


def mean(runs: Sequence[Run], name: str, unit: str) -> Cell:
    """A cost: the mean over seeds, without an interval."""
    values = list(by_seed(runs, name).values())
    return Cell(sum(values) / len(values), unit, n=len(values)) if values else Cell(nan, unit, reason=why(runs, name))


def why(runs: Sequence[Run], what: str) -> str:
    """Why an arm has no value of that."""
    if any(run.done for run in runs):
        return f"finished runs hold no {what}"
    failed = [run for run in runs if run.status == "failed"]
    if failed:
        return f"{len(failed)} of {len(runs)} runs failed: {failed[0].reason.splitlines()[-1].strip()}"
    return f"no run has finished: {runs[0].reason}" if runs else "not asked for"


def finished(runs: Sequence[Run]) -> Cell:
    """`3/5 (1 failed)`"""
    failed = sum(run.status == "failed" for run in runs)
    return Cell(f"{sum(run.done for run in runs)}/{len(runs)}" + (f" ({failed} failed)" if failed else ""))
