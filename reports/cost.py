"""Score against cost: which arm nobody beats at its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from reports.curves import spread, ticks
from reports.data import Data, data
from reports.load import Run
from reports.looks import Look
from reports.numbers import percent, si, span, tick
from reports.quantities import AXES, Axis
from reports.stats import Interval, t_interval

COSTS = tuple(axis for key in ("flops", "tokens", "seconds") for axis in AXES if axis.key == key)
ANCESTORS = {"budget/flops": "ancestors/flops", "budget/seconds": "ancestors/seconds"}


@dataclass(frozen=True)
class Point:
    """An arm, in percent of the plot's box from the top left."""

    label: str
    look: Look
    x: float
    height: float
    low: float | None
    high: float | None
    text_at: float
    best: bool  # nobody scores as much for less, or more for as much
    said: str


@dataclass(frozen=True)
class Scatter:
    axis: Axis
    points: tuple[Point, ...]
    front: str  # the steps along the best ones
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Cost:
    plots: tuple[Scatter, ...]
    caption: str
    data: Data


def spent(run: Run, axis: Axis) -> float:
    """What a run cost, with the stages before it where they are metered; nan where it is not known."""
    before = [run.final(ANCESTORS[name]) for name in axis.columns if name in ANCESTORS]
    return sum(run.final(name) for name in axis.columns) + sum(value for value in before if isfinite(value))


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of those (cost, score) that no other matches at a lower cost or beats at the same; cheapest first."""
    best: list[str] = []
    top = -float("inf")
    for name, (_, score) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if score > top:
            best.append(name)
            top = score
    return best


def _scatter(axis: Axis, found: Mapping[str, tuple[float, Interval]], looks: Mapping[str, Look], y: Sequence[float]) -> Scatter:
    end = max(cost for cost, _ in found.values()) * 1.04
    best = pareto({label: (cost, score.mean) for label, (cost, score) in found.items()})

    def across(cost: float) -> float:
        return round(100 * cost / end, 2)

    def down(score: float) -> float:
        return round(100 * min(max(1 - (score - y[0]) / (y[-1] - y[0]), 0.0), 1.0), 2)

    heights = spread([round(10 * down(score.mean)) for _, score in found.values()])
    points: list[Point] = []
    for (label, (cost, score)), text_at in zip(found.items(), heights, strict=True):
        low, high = (down(score.low), down(score.high)) if isfinite(score.low) else (None, None)
        said = f"{percent(score.mean)}% for {si(cost)} {axis.name}"
        points.append(Point(label, looks[label], across(cost), down(score.mean), low, high, text_at / 10, label in best, said))
    at = {point.label: point for point in points}
    corners = [(at[label].x, at[label].height) for label in best]
    steps = [f"M{10 * corners[0][0]:.0f} {10 * corners[0][1]:.0f}"]
    steps += [f"H{10 * x:.0f}V{10 * height:.0f}" for x, height in corners[1:]]
    x_ticks = tuple((across(mark), tick(mark)) for mark in ticks(0, end, 4) if mark <= end)
    return Scatter(axis, tuple(points), "".join(steps) + "H1000", x_ticks, tuple((down(mark), percent(mark, 0)) for mark in y))


def costs(frame: Any, runs: Sequence[Run], looks: Mapping[str, Look]) -> Cost | None:
    """A plot for each kind of cost that was metered; None where fewer than two arms are scored."""
    scores = {row["arm"]: t_interval(row["scores"].values()) for row in frame.to_dict("records") if row["scores"]}
    prices: dict[Axis, dict[str, float]] = {}
    for axis in COSTS:
        for label in scores:
            known = [spent(run, axis) for run in runs if run.done and run.label == label]
            known = [value for value in known if isfinite(value)]
            if known:
                prices.setdefault(axis, {})[label] = sum(known) / len(known)
    prices = {axis: paid for axis, paid in prices.items() if len(paid) > 1 and max(paid.values()) > 0}
    if not prices:
        return None
    edges = [v for s in scores.values() for v in (s.mean, s.low, s.high) if isfinite(v)]
    y = [mark for mark in ticks(min(0.9, max(0.0, min(edges))), min(1.0, max(edges))) if mark <= 1 + 1e-9]
    plots = tuple(
        _scatter(axis, {label: (cost, scores[label]) for label, cost in paid.items()}, looks, y) for axis, paid in prices.items()
    )
    counts = [score.n for score in scores.values()]
    rows = [
        (axis.name, point.label, prices[axis][point.label], scores[point.label].mean, scores[point.label].low,
         scores[point.label].high, scores[point.label].n, "yes" if point.best else "no")
        for axis, plot in zip(prices, plots, strict=True) for point in plot.points
    ]  # fmt: skip
    caption = (
        f"Pass@1 in percent against what training cost, means over {span(counts, 'finished seed')}; whisker: 95% t interval over "
        "seeds. A ring marks an arm that no other beats at its price (Pareto, by means alone: compare the whiskers); the dashes "
        "join these. The cost of earlier stages is included where it is metered, in FLOPs and seconds."
    )
    columns = ("cost_in", "arm", "cost", "pass@1", "low", "high", "seeds", "pareto_optimal")
    return Cost(plots, caption, data("cost", columns, rows))
