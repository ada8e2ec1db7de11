"""How long right and wrong completions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from reports.curves import ticks
from reports.data import Data, data
from reports.load import Run
from reports.looks import Look
from reports.numbers import span, tick
from reports.stats import Interval, t_interval
from reports.tally import Tally


@dataclass(frozen=True)
class Mark:
    """Mean length of the right or of the wrong completions, in percent of the width."""

    kind: str
    interval: Interval
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    label: str
    look: Look
    marks: tuple[Mark, ...]
    share: float  # of completions that are right


@dataclass(frozen=True)
class Lengths:
    rows: tuple[Row, ...]
    ticks: tuple[tuple[float, str], ...]
    caption: str
    data: Data


def lengths(runs: Sequence[Run], tallies: Mapping[str, Tally], looks: Mapping[str, Look]) -> Lengths | None:
    """A row an arm; None where no completions were kept."""
    arms: dict[str, list[Tally]] = {}
    for run in runs:
        if run.id in tallies and tallies[run.id].samples:
            arms.setdefault(run.label, []).append(tallies[run.id])
    spreads = {
        label: {
            kind: t_interval([one.length(right) for one in found if isfinite(one.length(right))])
            for kind, right in (("right", True), ("wrong", False))
        }
        for label, found in arms.items()
    }
    edges = [edge for row in spreads.values() for i in row.values() for edge in (i.mean, i.high) if isfinite(edge)]
    if not edges or max(edges) <= 0:
        return None
    end = ticks(0, max(edges), 6)[-1]

    def at(value: float) -> float:
        return round(100 * min(max(value / end, 0.0), 1.0), 2)

    rows: list[Row] = []
    for label, found in arms.items():
        marks = tuple(
            Mark(kind, i, at(i.mean), at(i.low if isfinite(i.low) else i.mean), at(i.high if isfinite(i.high) else i.mean))
            for kind, i in spreads[label].items()
            if i.n
        )
        right, samples = sum(one.number[True] for one in found), sum(one.samples for one in found)
        rows.append(Row(label, looks[label], marks, right / samples))
    said = span([i.n for row in spreads.values() for i in row.values() if i.n], "finished seed")
    total = sum(one.samples for found in arms.values() for one in found)
    caption = (
        f"Mean tokens of the sampled completions of held-out problems that are right (filled) and wrong (hollow), over {said}; "
        f"bar: 95% t interval over seeds, none for one seed; {total:,} completions in all. A method that lengthens wrong "
        "answers alone pulls the two apart."
    )
    columns = ("arm", "completions", "mean_tokens", "low", "high", "seeds", "share_right")
    listed = [
        (row.label, mark.kind, mark.interval.mean, mark.interval.low, mark.interval.high, mark.interval.n, row.share)
        for row in rows
        for mark in row.marks
    ]
    marks = tuple((at(mark), tick(mark)) for mark in ticks(0, end, 6))
    return Lengths(tuple(rows), marks, caption, data("length-by-correctness", columns, listed))
