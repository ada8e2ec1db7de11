"""Learning curves as geometry: one panel a quantity, one line an arm, drawn in a 1000 × 1000 box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

import numpy as np
import pandas as pd

from reports.leaderboard import is_base
from reports.load import Run
from reports.numbers import percent, si, tick

BOX = 1000
MOST_POINTS = 60
LABEL_GAP = 68  # of the box: what a line of label text needs at the panel's height


@dataclass(frozen=True)
class Axis:
    key: str
    name: str
    columns: tuple[str, ...]  # summed


@dataclass(frozen=True)
class Quantity:
    column: str
    title: str
    caption: str
    write: Callable[[float], str] = si
    mark: Callable[[float], str] = tick
    from_zero: bool = True
    whole: bool = False  # a share of 1, so that the axis ends there at the latest


AXES = (
    Axis("steps", "steps", ("step",)),
    Axis("tokens", "tokens", ("budget/sampled_tokens", "budget/trained_tokens")),
    Axis("flops", "FLOPs", ("budget/flops",)),
    Axis("seconds", "seconds", ("budget/seconds",)),
)
QUANTITIES = (
    Quantity(
        "eval/pass@1",
        "Validation pass@1, %",
        "Share of sampled completions that the verifier accepts, on held-out validation problems.",
        write=lambda share: f"{percent(share)}%",
        mark=lambda share: percent(share, 0),
        whole=True,
    ),
    Quantity("reward", "Training reward", "Mean reward of the rollouts a step trains on; only arms that sample them."),
    Quantity("eval/kl", "KL to the base", "Mean per-token KL(π‖base) on completions sampled for validation problems."),
    Quantity("eval/mean_length", "Completion length", "Mean length of validation completions, in tokens."),
    Quantity("entropy", "Entropy", "Mean entropy of the next token in the rollouts a step trains on, in nats."),
)


@dataclass(frozen=True)
class Line:
    label: str
    colour: int
    path: str
    band: str
    end: int
    text_at: int
    last: str


@dataclass(frozen=True)
class Plot:
    """A panel against one x-axis."""

    axis: Axis
    end: float
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Panel:
    quantity: Quantity
    plots: tuple[Plot, ...]
    y_ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    base: float | None  # height of the base's line, where there is one


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
    blocks = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[b].mean() for b in blocks]), np.array([y[b].mean() for b in blocks])


def series(label: str, runs: Sequence[Run], column: str, axis: Axis) -> Series | None:
    """Mean and range over seeds, interpolated onto the first seed's points, over the stretch that all seeds cover."""
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    for run in runs:
        if column not in run.metrics or not set(axis.columns) <= set(run.metrics):
            continue
        x = run.metrics[list(axis.columns)].sum(axis=1, min_count=len(axis.columns))
        frame = pd.DataFrame({"x": x, "y": run.metrics[column]}).replace([np.inf, -np.inf], np.nan).dropna()
        if len(frame) > 1:
            curves.append(_thin(frame["x"].to_numpy(float), frame["y"].to_numpy(float)))
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
    ends = [float(run.metrics[list(axis.columns)].sum(axis=1).max()) for run in runs if set(axis.columns) <= set(run.metrics)]
    return max(ends, default=0.0)


def _plot(found: Sequence[Series], axis: Axis, quantity: Quantity, colours: dict[str, int], x_end: float, y: list[float]) -> Plot:
    x_marks = [mark for mark in ticks(0, x_end, 4) if mark <= x_end * 1.001]

    def across(x: np.ndarray) -> np.ndarray:
        return BOX * x / x_end

    def down(values: np.ndarray) -> np.ndarray:
        return BOX * (1 - (values - y[0]) / (y[-1] - y[0]))

    ends = [round(float(down(s.mean)[-1])) for s in found]
    lines: list[Line] = []
    for s, end, text_at in zip(found, ends, spread(ends), strict=True):
        edge = np.concatenate([s.x, s.x[::-1]])
        band = _path(across(edge), down(np.concatenate([s.high, s.low[::-1]]))) + "Z"
        single = bool((s.high == s.low).all())
        path = _path(across(s.x), down(s.mean))
        last = quantity.write(float(s.mean[-1]))
        lines.append(Line(s.label, colours[s.label], path, "" if single else band, end, text_at, last))
    return Plot(axis, x_end, tuple(lines), tuple((mark / x_end * 100, tick(mark)) for mark in x_marks))


def _base(runs: Sequence[Run], column: str) -> float | None:
    starts = [run.metrics[column].dropna() for run in runs if is_base(run) and run.done and column in run.metrics]
    values = [float(start.iloc[0]) for start in starts if len(start)]
    return sum(values) / len(values) if values else None


def panels(runs: Sequence[Run], colours: dict[str, int]) -> list[Panel]:
    """A panel for each quantity that some finished run logged."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.done and not is_base(run):
            arms.setdefault(run.label, []).append(run)
    ends = {axis: _end([run for seeds in arms.values() for run in seeds], axis) for axis in AXES}
    drawn: list[Panel] = []
    for quantity in QUANTITIES:
        found = {
            axis: [s for label, seeds in arms.items() if (s := series(label, seeds, quantity.column, axis))] for axis in AXES
        }
        everything = [s for group in found.values() for s in group]
        if not everything:
            continue
        base = _base(runs, quantity.column)
        shown = [] if base is None or not isfinite(base) else [base]
        low = min([float(s.low.min()) for s in everything] + shown)
        high = max([float(s.high.max()) for s in everything] + shown)
        y = ticks(min(0.0, low) if quantity.from_zero else low, high)
        if quantity.whole and y[-1] > 1:
            y = [mark for mark in y if mark < 1 - 1e-9] + [1.0]

        def height(value: float, y: list[float] = y) -> float:
            return 100 * (1 - (value - y[0]) / (y[-1] - y[0]))

        drawn.append(
            Panel(
                quantity,
                tuple(_plot(found[axis], axis, quantity, colours, ends[axis], y) for axis in AXES if found[axis]),
                tuple((height(mark), quantity.mark(mark)) for mark in y),
                y[0],
                y[-1],
                height(shown[0]) if shown else None,
            )
        )
    return drawn
