"""Learning curves as geometry: one panel a quantity, one line an arm, drawn in a 1000 × 1000 box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, isfinite, log10, nan, sqrt
from typing import Protocol

import numpy as np
import pandas as pd

from reports.data import Data, data
from reports.leaderboard import is_base
from reports.load import Run
from reports.looks import Look
from reports.numbers import si, tick
from reports.quantities import AXES, KL, PAIRS, QUANTITIES, REWARD, Axis, Quantity

BOX = 1000
MOST_POINTS = 60
LABEL_GAP = 68  # of the box: what a line of label text needs at the panel's height


@dataclass(frozen=True)
class Line:
    label: str
    look: Look
    path: str
    band: str
    stop: float  # where it ends and how high, and how high its name stands, in percent
    height: float
    text_at: float
    said: str  # its last value


@dataclass(frozen=True)
class Plot:
    """A panel against one x-axis."""

    axis: Axis
    end: float
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    turns: bool = False  # lines may go back, or x is not linear: a dot says where each ended, and no cursor reads values


@dataclass(frozen=True)
class Panel:
    quantity: Quantity
    plots: tuple[Plot, ...]
    y_ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    base: float | None  # height of the base's line, where there is one
    data: Data


class Logged(Protocol):
    """Whatever was logged, one row a step."""

    @property
    def metrics(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Series:
    """One arm over its seeds on a common grid."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to at least `high`."""
    if not high > low:
        high = low + 1
    rough = (high - low) / most
    scale = 10 ** floor(log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    first = floor(low / step + 1e-9)
    found = [first * step]
    while found[-1] < high - 1e-9 * step:
        found.append((first + len(found)) * step)
    return found


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST_POINTS points: means of neighbours."""
    if len(x) <= MOST_POINTS:
        return x, y
    starts = np.arange(MOST_POINTS) * len(x) // MOST_POINTS
    sizes = np.diff(starts, append=len(x))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def _along(run: Logged, axis: Axis) -> np.ndarray:
    return np.sum([run.metrics[name].to_numpy(float) for name in axis.columns], axis=0)


def series(label: str, runs: Sequence[Logged], column: str, axis: Axis) -> Series | None:
    """Mean and range over seeds, interpolated onto the first seed's points, over the stretch that all seeds cover."""
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    for run in runs:
        if column not in run.metrics or not all(name in run.metrics for name in axis.columns):
            continue
        x = _along(run, axis)
        y = run.metrics[column].to_numpy(float)
        drawn = np.isfinite(x) & np.isfinite(y)
        if drawn.sum() > 1:
            curves.append(_thin(x[drawn], y[drawn]))
    if not curves:
        return None
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if not end > start:
        return None
    grid = np.unique(np.clip(np.append(curves[0][0], [start, end]), start, end))
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return Series(label, grid, values.mean(0), values.min(0), values.max(0))


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{round(a)} {round(b)}" for a, b in zip(x, y, strict=True))


def spread(wanted: Sequence[int], gap: int = LABEL_GAP) -> list[int]:
    """Heights near the wanted ones that are at least `gap` apart and inside the box where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0] * len(wanted)
    at = -gap
    for i in order:
        at = placed[i] = max(wanted[i], at + gap)
    at = max(BOX, (len(wanted) - 1) * gap) + gap
    for i in reversed(order):
        at = placed[i] = min(placed[i], at - gap)
    return placed


def _end(runs: Sequence[Run], axis: Axis) -> float:
    """How far the furthest run went, so that all panels of a section share their x-axis."""
    ways = [_along(run, axis) for run in runs if all(name in run.metrics for name in axis.columns)]
    return max((float(x.max()) for way in ways if (x := way[np.isfinite(way)]).size), default=0.0)


def _across(x: np.ndarray, end: float) -> np.ndarray:
    return BOX * x / end


def _down(values: np.ndarray, y: Sequence[float]) -> np.ndarray:
    return np.clip(BOX * (1 - (values - y[0]) / (y[-1] - y[0])), 0, BOX)


def _plot(
    found: Sequence[Series], axis: Axis, quantity: Quantity, looks: Mapping[str, Look], x_end: float, y: Sequence[float]
) -> Plot:
    x_marks = [mark for mark in ticks(0, x_end, 4) if mark <= x_end * 1.001]
    ends = [round(float(_down(s.mean, y)[-1])) for s in found]
    lines: list[Line] = []
    for s, end, text_at in zip(found, ends, spread(ends), strict=True):
        x = _across(s.x, x_end)
        band = _path(np.concatenate([x, x[::-1]]), _down(np.concatenate([s.high, s.low[::-1]]), y)) + "Z"
        single = bool((s.high == s.low).all())
        last = f"last {quantity.write(float(s.mean[-1]))}"
        path, stop = _path(x, _down(s.mean, y)), round(float(x[-1])) / 10
        lines.append(Line(s.label, looks[s.label], path, "" if single else band, stop, end / 10, text_at / 10, last))
    return Plot(axis, x_end, tuple(lines), tuple((mark / x_end * 100, tick(mark)) for mark in x_marks))


def _base(runs: Sequence[Run], column: str) -> list[float]:
    """What the base starts with, where it is known: one value or none."""
    starts = [run.metrics[column].dropna() for run in runs if is_base(run) and run.done and column in run.metrics]
    values = [float(start.iloc[0]) for start in starts if len(start)]
    mean = sum(values) / len(values) if values else nan
    return [mean] if isfinite(mean) else []


def _y_axis(quantity: Quantity, values: Sequence[float]) -> list[float]:
    low, high = max(min(values), quantity.least), max(values)
    low = min(low, 0.9) if quantity.whole else low
    y = ticks(min(0.0, low) if quantity.from_zero else low, high)
    return [mark for mark in y if mark < 1 - 1e-9] + [1.0] if quantity.whole and y[-1] > 1 else y


def _panel(quantity: Quantity, plots: Sequence[Plot], y: Sequence[float], base: Sequence[float], numbers: Data) -> Panel:
    heights = [float(height) / BOX * 100 for height in _down(np.array([*y, *base]), y)]
    marks = tuple((height, quantity.mark(mark)) for height, mark in zip(heights, y, strict=False))
    return Panel(quantity, tuple(plots), marks, y[0], y[-1], heights[-1] if base else None, numbers)


def _numbers(quantity: Quantity, axis: Axis, found: Sequence[Series]) -> Data:
    """Against the first axis, as it is drawn."""
    rows = [
        (s.label, float(x), float(mean), float(low), float(high))
        for s in found
        for x, mean, low, high in zip(s.x, s.mean, s.low, s.high, strict=True)
    ]
    return data(quantity.column.replace("/", "-"), ("line", axis.name, "mean", "band_low", "band_high"), rows)


def _arms(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The finished runs of each arm that trains."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.done and not is_base(run):
            arms.setdefault(run.label, []).append(run)
    return arms


def panel(
    quantity: Quantity,
    found: Mapping[Axis, Sequence[Series]],
    looks: Mapping[str, Look],
    ends: Mapping[Axis, float],
    base: Sequence[float] = (),
) -> Panel | None:
    """The series of one quantity, against each axis; None where there are none."""
    values = [float(edge) for group in found.values() for s in group for edge in (s.low.min(), s.high.max())]
    if not values:
        return None
    y = _y_axis(quantity, [*values, *base])
    drawn = [axis for axis in found if found[axis]]
    plots = [_plot(found[axis], axis, quantity, looks, ends[axis], y) for axis in drawn]
    return _panel(quantity, plots, y, base, _numbers(quantity, drawn[0], found[drawn[0]]))


def uneven_panel(
    quantity: Quantity, axis: Axis, found: Sequence[Series], looks: Mapping[str, Look], marks: Sequence[tuple[float, str]]
) -> Panel:
    """Series whose x is some scale of what the marks (position in x, text) say."""
    y = _y_axis(quantity, [float(edge) for s in found for edge in (s.low.min(), s.high.max())])
    end = max(float(s.x[-1]) for s in found)
    plot = _plot(found, axis, quantity, looks, end, y)
    plot = replace(plot, x_ticks=tuple((100 * at / end, text) for at, text in marks), turns=True)
    return _panel(quantity, [plot], y, (), _numbers(quantity, axis, found))


def panels(runs: Sequence[Run], looks: Mapping[str, Look]) -> list[Panel]:
    """A panel for each quantity that some finished run logged, then one for each pair that an arm logged."""
    arms = _arms(runs)
    ends = {axis: _end([run for seeds in arms.values() for run in seeds], axis) for axis in AXES}
    drawn: list[Panel] = []

    def draw(quantity: Quantity, wanted: Sequence[tuple[str, Sequence[Run], str]], looks: Mapping[str, Look]) -> None:
        found = {axis: [s for name, seeds, column in wanted if (s := series(name, seeds, column, axis))] for axis in AXES}
        made = panel(quantity, found, looks, ends, _base(runs, quantity.column))
        if made:
            drawn.append(made)

    for quantity in QUANTITIES:
        draw(quantity, [(label, seeds, quantity.column) for label, seeds in arms.items()], looks)
    for pair in PAIRS:
        for label, seeds in arms.items():
            if any(set(pair.columns) <= set(run.metrics) for run in seeds):
                quantity = Quantity(pair.columns[0], f"{label}: {pair.title}", pair.caption(seeds))
                own = dict(zip(pair.names, (Look(looks[label].colour), Look(dash="dashed")), strict=True))
                draw(quantity, [(name, seeds, column) for name, column in zip(pair.names, pair.columns, strict=True)], own)
    return drawn


def frontier(runs: Sequence[Run], looks: Mapping[str, Look]) -> Panel | None:
    """Pass@1 against KL to the base: what each arm gains for how far it goes. None where nothing moved."""
    columns = [*KL.columns, REWARD.column]
    ways: dict[str, np.ndarray] = {}
    for label, seeds in _arms(runs).items():
        frames = [run.metrics[columns] for run in seeds if set(columns) <= set(run.metrics)]
        found = [frame.replace([np.inf, -np.inf], np.nan).dropna().to_numpy(float) for frame in frames]
        shared = min(map(len, found), default=0)
        if shared:
            ways[label] = np.mean([way[:shared] for way in found], axis=0)
    x_end = max((float(way[:, 0].max()) for way in ways.values()), default=0.0)
    if x_end <= 0:
        return None
    base = _base(runs, REWARD.column)
    y = _y_axis(REWARD, [float(value) for way in ways.values() for value in way[:, 1]] + base)
    ends = [round(float(_down(way[-1, 1], y))) for way in ways.values()]
    lines: list[Line] = []
    for (label, way), end, text_at in zip(ways.items(), ends, spread(ends), strict=True):
        x = _across(np.sqrt(way[:, 0].clip(0)), sqrt(x_end))
        last = f"{REWARD.write(way[-1, 1])} at KL {si(way[-1, 0])}"
        path, stop = _path(x, _down(way[:, 1], y)), round(float(x[-1])) / 10
        lines.append(Line(label, looks[label], path, "", stop, end / 10, text_at / 10, last))
    marks = tuple((100 * sqrt(mark / x_end), tick(mark)) for mark in ticks(0, x_end, 4) if mark <= x_end * 1.001)
    rows = [(label, float(kl), float(score)) for label, way in ways.items() for kl, score in way]
    numbers = data("reward-and-kl", ("arm", "kl", "pass@1"), rows)
    return _panel(REWARD, [Plot(KL, x_end, tuple(lines), marks, turns=True)], y, base, numbers)
