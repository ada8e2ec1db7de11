"""How the settings of a comparison were searched for: what harness/sweep.py has written down of trials, drawn.

trials.jsonl   a line a trial: options, state, means over seeds, scores of each seed, when, and what it took
search.json    ranges, importances, the best trials again on other seeds, and the one that was chosen
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite, log2, log10
from pathlib import Path
from typing import Any

from reports.curves import ticks
from reports.data import Data, data
from reports.frontier import envelope
from reports.load import HEADLINE, Comparison, ReportError, read_jsonl
from reports.numbers import DASH, percent, points, si, tick
from reports.stats import Interval, paired

EDGE = 4.0  # percent of a panel that stays free on either side
WRITE: dict[str, Callable[[float], str]] = {"pass@1": percent, "reward": percent, "kl": si}
FEWEST = 30  # trials, for importances


@dataclass(frozen=True)
class Dot:
    """A trial in a panel, in percent from the left and from above."""

    x: float
    y: float
    state: str  # complete, pruned, failed, best
    said: str


@dataclass(frozen=True)
class Chart:
    title: str
    dots: tuple[Dot, ...]
    paths: tuple[tuple[str, str], ...]  # class and line, in a box of 1000 by 1000
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_name: str


@dataclass(frozen=True)
class Bar:
    """A trial in time, in percent."""

    start: float
    width: float
    top: float
    state: str
    said: str
    again: tuple[float, ...]  # where it was taken up after its process had died


@dataclass(frozen=True)
class Timeline:
    bars: tuple[Bar, ...]
    x_ticks: tuple[tuple[float, str], ...]
    x_name: str


@dataclass(frozen=True)
class Study:
    """The search of one method."""

    label: str
    caption: str
    history: Chart
    slices: tuple[Chart, ...]
    parallel: Chart
    front: Chart
    timeline: Timeline | None
    importances: tuple[tuple[str, tuple[float, ...]], ...]  # of each option, by each estimator
    estimators: tuple[str, ...]
    settings: tuple[tuple[str, str, str, str], ...]  # option, range, default, tuned
    again: tuple[tuple[int, str, str, str], ...]  # trial, its score in the search and on other seeds, and what became of it
    difference: Interval | None  # tuned less default, on test problems
    scores: tuple[str, str]  # of default and tuned
    data: Data


@dataclass(frozen=True)
class Effort:
    """What tuning one method took."""

    label: str
    counts: tuple[int, int, int]  # complete, pruned, failed
    flops: float
    seconds: float


@dataclass(frozen=True)
class Searched:
    studies: tuple[Study, ...]
    effort: tuple[Effort, ...]
    caption: str


class Scale:
    """Where the values of an option lie between the edges of a panel, in percent."""

    def __init__(self, table: Mapping[str, Sequence[Any]]):
        ((self.kind, values),) = table.items()
        self.values = list(values)
        self.low, self.high = (0.0, len(values) - 1.0) if self.kind == "choice" else (self._at(values[0]), self._at(values[-1]))

    def _at(self, value: Any) -> float:
        if self.kind == "choice":
            return float(self.values.index(value))
        return {"log_uniform": log10, "powers_of_two": log2}.get(self.kind, float)(value)

    def place(self, value: Any) -> float:
        return EDGE + (100 - 2 * EDGE) * (self._at(value) - self.low) / (self.high - self.low)

    def marks(self) -> tuple[tuple[float, str], ...]:
        if self.kind == "choice":
            return tuple((self.place(value), str(value)) for value in self.values)
        if self.kind == "powers_of_two":
            return tuple((self.place(2**n), str(2**n)) for n in range(int(self.low), int(self.high) + 1))
        if self.kind == "log_uniform":
            inside = [10.0**n for n in range(-9, 10) if self.low - 1e-9 <= n <= self.high + 1e-9]
            return tuple((self.place(x), f"{x:g}") for x in inside or self.values)
        return tuple(
            (self.place(x), tick(round(x, 9)))
            for x in ticks(self.values[0], self.values[-1], 4)
            if self.low <= x <= self.high + 1e-9
        )

    def said(self) -> str:
        if self.kind == "choice":
            return ", ".join(map(str, self.values))
        return f"{self.values[0]:g} to {self.values[-1]:g}{', log' if self.kind == 'log_uniform' else ''}"


class Height:
    """Where scores lie between the top and the bottom of a panel, in percent."""

    def __init__(self, values: Sequence[float], write: Callable[[float], str]):
        found = ticks(min(values), max(values), 4)
        self.low, self.high, self.write = found[0], found[-1], write
        self.marks = tuple((self.place(mark), write(mark)) for mark in found)

    def place(self, value: float) -> float:
        return 100 * (1 - (value - self.low) / (self.high - self.low))


def _path(dots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{round(10 * x)} {round(10 * y)}" for x, y in dots)


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _said(row: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name} {WRITE[name](row['means'][name])}" for name in ("pass@1", "kl") if name in (row["means"] or {}))
    options = ", ".join(f"{name} {_written(value)}" for name, value in row["options"].items())
    return (
        f"trial {row['trial']}, {row['state']}{'' if row['feasible'] else ', beyond a cap'}: {scores or row['why']} ({options})"
    )


def _state(row: Mapping[str, Any], tuned: int) -> str:
    if row["trial"] == tuned:
        return "best"
    if row["state"] == "fail":
        return "failed"
    return "complete" if row["state"] == "complete" and row["feasible"] else "pruned"


def _history(scored: Sequence[Mapping[str, Any]], first: str, height: Height, tuned: int, most: int) -> Chart:
    across = Scale({"uniform": [0, max(1, most)]})
    dots = tuple(Dot(across.place(r["trial"]), height.place(r["means"][first]), _state(r, tuned), _said(r)) for r in scored)
    best, stairs = None, list[tuple[float, float]]()
    for row in (row for row in scored if row["state"] == "complete" and row["feasible"]):
        at = across.place(row["trial"])
        if best is not None:
            stairs.append((at, height.place(best)))
        best = max(row["means"][first], row["means"][first] if best is None else best)
        stairs.append((at, height.place(best)))
    paths = (("front", _path(stairs)),) if stairs else ()
    return Chart("History", dots, paths, across.marks(), height.marks, "trial")


def _slice(name: str, scale: Scale, scored: Sequence[Mapping[str, Any]], first: str, height: Height, tuned: int) -> Chart:
    dots = [
        Dot(scale.place(r["options"][name]), height.place(r["means"][first]), _state(r, tuned), _said(r))
        for r in scored
        if name in r["options"]
    ]
    return Chart(name, tuple(dots), (), scale.marks(), height.marks, name)


def _parallel(scales: Mapping[str, Scale], scored: Sequence[Mapping[str, Any]], first: str, height: Height, tuned: int) -> Chart:
    """A line a trial through its options and its score; the best quarter stands out."""
    across = {name: EDGE + (100 - 2 * EDGE) * i / len(scales) for i, name in enumerate((*scales, first))}
    ranked = sorted(scored, key=lambda row: row["means"][first])
    lines = list[tuple[str, str]]()
    for i, row in enumerate(ranked):
        way = [(across[name], 100 - scale.place(row["options"][name])) for name, scale in scales.items()]
        kind = "chosen" if row["trial"] == tuned else "good" if i >= 0.75 * len(ranked) else "other"
        lines.append((kind, _path([*way, (across[first], height.place(row["means"][first]))])))
    marks = tuple((across[name], name) for name in across)
    return Chart("Parallel coordinates", (), tuple(lines), marks, (), "")


def _front(scored: Sequence[Mapping[str, Any]], first: str, height: Height, tuned: int) -> Chart:
    """Score against how far the policy went; the line joins the trials that none beats in both."""
    most = max(row["means"]["kl"] for row in scored)
    across = Scale({"uniform": [0.0, most if most > 0 else 1.0]})
    dots = [Dot(across.place(r["means"]["kl"]), height.place(r["means"][first]), _state(r, tuned), _said(r)) for r in scored]
    allowed = [row["means"] for row in scored if row["state"] == "complete" and row["feasible"]]
    stairs = [(across.place(kl), height.place(top)) for kl, top in envelope((means["kl"], means[first]) for means in allowed)]
    paths = (("front", _path(stairs)),) if stairs else ()
    return Chart("Pareto front", tuple(dots), paths, across.marks(), height.marks, "KL, nats a token")


def _timeline(rows: Sequence[Mapping[str, Any]]) -> Timeline | None:
    ended = [row for row in rows if row["begun"] and row["ended"]]
    if not ended:
        return None
    moments = {row["trial"]: [datetime.fromisoformat(t).timestamp() for t in (*row["begun"], row["ended"])] for row in ended}
    first, last = min(m[0] for m in moments.values()), max(m[-1] for m in moments.values())
    unit, name = (60.0, "minutes") if last - first < 7200 else (3600.0, "hours")
    across = Scale({"uniform": [0.0, max((last - first) / unit, 1e-3)]})
    bars = list[Bar]()
    for i, row in enumerate(ended):
        start, *again, end = (across.place((moment - first) / unit) for moment in moments[row["trial"]])
        said = f"{_said(row)}; {(moments[row['trial']][-1] - moments[row['trial']][0]) / 60:.1f} minutes"
        state = "failed" if row["state"] == "fail" else str(row["state"])
        bars.append(Bar(start, max(0.3, end - start), 100 * i / len(ended), state, said, tuple(again)))
    return Timeline(tuple(bars), across.marks(), name)


def _data(label: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Data:
    columns = ("trial", "state", *names, "pass@1", "reward", "kl", "truncated", "flops", "seconds")
    lines = [
        (
            row["trial"],
            row["state"],
            *(row["options"].get(name) for name in names),
            *((row["means"] or {}).get(name) for name in ("pass@1", "reward", "kl", "truncated")),
            row["flops"],
            row["seconds"],
        )
        for row in rows
    ]
    return data(f"trials-{label}", columns, lines)


def _tested(comparison: Comparison, label: str) -> dict[int, float]:
    runs = [run for run in comparison.runs if run.label == label and run.done and run.seed is not None]
    last = {run.seed or 0: run.metrics[HEADLINE].dropna() for run in runs if HEADLINE in run.metrics}
    return {seed: float(column.iloc[-1]) for seed, column in last.items() if len(column)}


def _study(comparison: Comparison, label: str, rows: Sequence[dict[str, Any]], found: Mapping[str, Any], first: str) -> Study:
    study, tuned = found["studies"][label], found["studies"][label]["tuned"]
    scales = {name: Scale(table) for name, table in study["ranges"].items()}
    scored = [row for row in rows if row["means"]]
    height = Height([row["means"][first] for row in scored], WRITE[first])
    kinds = study["importances"]
    default, chosen = (_tested(comparison, f"{label}-{arm}") for arm in ("default", "tuned"))
    difference = paired(chosen, default) if default.keys() & chosen.keys() else None
    means = tuple(percent(sum(s.values()) / len(s)) if s else DASH for s in (default, chosen))
    again = [
        (
            one["trial"],
            WRITE[first](one["searched"]),
            WRITE[first](sum(one["seeds"].values()) / len(one["seeds"])) if one["seeds"] else DASH,
            "tuned" if one["trial"] == tuned else one["why"] or DASH,
        )
        for one in study["again"]
    ]
    caption = f"{len(rows)} trials of {len(found['seeds'])} seeds, drawn by {found['sampler']}; {first} on validation problems."
    if found["constraints"]:
        caption += " Capped: " + ", ".join(f"{name} at {cap:g}" for name, cap in found["constraints"].items()) + "."
    if not kinds:
        caption += f" Importances need {FEWEST} complete trials."
    return Study(
        label,
        caption,
        _history(scored, first, height, tuned, max(row["trial"] for row in rows)),
        tuple(_slice(name, scale, scored, first, height, tuned) for name, scale in scales.items()),
        _parallel(scales, [row for row in scored if row["options"].keys() >= scales.keys()], first, height, tuned),
        _front(scored, first, height, tuned),
        _timeline(rows),
        tuple((name, tuple(kinds[kind][name] for kind in kinds)) for name in scales) if kinds else (),
        tuple(kinds),
        tuple((n, s.said(), _written(study["default"][n]), _written(study["options"][n])) for n, s in scales.items()),
        tuple(again),
        difference,
        (means[0], means[1]),
        _data(label, rows, list(scales)),
    )


def search(folder: Path, comparison: Comparison) -> Searched | None:
    """The search that the settings come from; None where there was none. Raises ReportError for what cannot be read."""
    if not (folder / "search.json").exists():
        return None
    try:
        found = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        rows = read_jsonl(folder / "trials.jsonl")
        first = found["objectives"][0]
        by_label = {label: [row for row in rows if row["study"] == label] for label in found["studies"]}
        studies = tuple(_study(comparison, label, own, found, first) for label, own in by_label.items())
        effort = tuple(_effort(label, own, found["studies"][label]["again"]) for label, own in by_label.items())
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(folder / "search.json", f"not what a search writes ({type(error).__name__}: {error})") from None
    seeds, others = (", ".join(map(str, found[key])) for key in ("seeds", "confirm_seeds"))
    caption = (
        f"{found['trials']} trials a method under one budget, seeds {seeds}; the best again on seeds {others}. Test problems "
        "were seen by the arms of the leaderboard alone."
    )
    return Searched(studies, effort, caption)


def _effort(label: str, rows: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> Effort:
    """Trials and the best again."""
    complete, pruned, failed = (sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "fail"))
    once = {json.dumps(row["options"], sort_keys=True): row for row in rows}.values()  # equal settings are the same runs
    flops, seconds = (sum(float(row[key] or 0) for row in (*once, *again)) for key in ("flops", "seconds"))
    return Effort(label, (complete, pruned, failed), flops, seconds)


def said(difference: Interval | None) -> str:
    """Tuned less default, in points."""
    if difference is None:
        return "not both tested"
    if not isfinite(difference.low):
        return f"{points(difference.mean)} points, no interval for {difference.n} seed"
    return (
        f"{points(difference.mean)} points ({points(difference.low)} to {points(difference.high)}, {difference.n} seeds, paired)"
    )
