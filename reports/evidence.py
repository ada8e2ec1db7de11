"""The statistics that claims are made of: each gives one value a seed, from finished runs alone.

value           of the arm
difference      arm - against
ratio           arm / against
late            the difference at the end less that in the middle of the budget, on a learning curve
slope           of a learning curve against the share of the budget: arm, or arm - against
drop            how far a curve falls from its peak to its end; where the peak is, the other seeds say
peak            √KL at that peak against log₂ of the reward model's pairs: the slope over the arms
interaction     (arm - against) of the first of each, less (arm - against) of the second
frontier        area between the upper envelopes of score against KL of two groups of arms, all points of their curves
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log2, sqrt
from typing import Any, Literal, TypeVar

import numpy as np

from reports.load import Comparison, ReportError, Run, read_json
from reports.stats import envelope_area, maj_at_k, pass_at_k

Statistic = Literal["value", "difference", "ratio", "late", "slope", "drop", "peak", "interaction", "frontier"]
Arms = tuple[str, ...]
Seeds = dict[int, float]
T = TypeVar("T")


class NotTestable(Exception):
    """What is missing for a statistic, in one line."""


def statistic(comparison: Comparison, name: Statistic, metric: str, arms: Arms, against: Arms) -> Seeds:
    """One value a seed; one a base, where seeds that share a base could not differ. Raises NotTestable naming what is missing."""
    found = STATISTICS[name](comparison, metric, arms, against)
    runs = [run for selector in (*arms, *against) for of_seed in chosen(comparison, selector).values() for run in of_seed]
    if not all(settled(run, metric) for run in runs):
        return found
    bases = {run.seed: tuple(str(other.config.get("base")) for other in runs if other.seed == run.seed) for run in runs}
    return {seed: found[seed] for seed in {bases[seed]: seed for seed in sorted(found, reverse=True)}.values()}


def settled(run: Run, metric: str) -> bool:
    """Whether a run's base decides what it measures: its facts, and of an arm that does not train whatever is not sampled."""
    untrained = "step" in run.metrics and run.metrics["step"].max() == 0
    return all(
        part.startswith("base/") or (untrained and (part.startswith("drafts/") or part.endswith("/greedy")))
        for part in metric.split(" / ")
    )


def unfinished(comparison: Comparison, selectors: Sequence[str]) -> int:
    """How many runs of these arms have failed or are to go."""
    return len({run.id for selector in selectors for run in asked(comparison, selector) if not run.done})


def asked(comparison: Comparison, selector: str) -> list[Run]:
    """All runs of an arm: LABEL, LABEL@MODEL, LABEL/TASK or LABEL@MODEL/TASK."""
    rest, _, task = selector.partition("/")
    label, _, model = rest.partition("@")
    found = [
        run
        for run in comparison.runs
        if run.label == label and (not model or run.model == model) and (not task or run.task == task)
    ]
    if not found:
        raise NotTestable(f"the comparison has no arm {selector}")
    return found


def chosen(comparison: Comparison, selector: str) -> dict[int, list[Run]]:
    """The finished runs of an arm, by seed."""
    runs = asked(comparison, selector)
    cells = {(run.task, run.model) for run in runs}
    found: dict[int, list[Run]] = {}
    for run in runs:
        if run.done and run.seed is not None:
            found.setdefault(run.seed, []).append(run)
    whole = {seed: runs for seed, runs in found.items() if len(runs) == len(cells)}
    if not whole:
        raise NotTestable(f"no seed of {selector} has finished")
    return whole


def values(comparison: Comparison, metric: str, selector: str) -> Seeds:
    """The metric of an arm, by seed: over several tasks and models, their mean."""
    out: Seeds = {}
    for seed, runs in chosen(comparison, selector).items():
        read = [measured(run, metric) for run in runs]
        if all(map(isfinite, read)):
            out[seed] = sum(read) / len(read)
    if not out:
        raise NotTestable(f"no run of {selector} has measured {metric}")
    return out


def measured(run: Run, metric: str) -> float:
    """One number of a finished run, nan if it has none. Raises NotTestable for a file that cannot be read."""
    if " / " in metric:
        top, bottom = (measured(run, part) for part in metric.split(" / ", 1))
        return top / bottom if bottom else float("nan")
    place, _, name = metric.partition("/")
    if place in ("base", "drafts"):
        path = run.directory / f"{place}.json"
        facts: Any = readable(lambda: read_json(path), run) if path.exists() else {}
        facts = facts.get(run.task, {}) if place == "drafts" else facts
        for part in name.split("/"):
            facts = facts.get(part) if isinstance(facts, Mapping) else None
        return float(facts) if isinstance(facts, int | float) else float("nan")
    kind, at, k = name.partition("@")
    logged = run.final(metric)
    if not isfinite(logged) and at and k.isdigit() and kind in ("pass", "maj"):
        return _attempts(run, {"eval": "validation", "test": run.split}.get(place, place), kind, int(k))
    return logged


def readable(read: Callable[[], T], run: Run) -> T:
    """What a file says. Raises NotTestable naming the run where it is half a file."""
    try:
        return read()
    except ReportError as error:
        raise NotTestable(f"{run.id}: {error.problem}") from None


def _attempts(run: Run, split: str, kind: str, k: int) -> float:
    """Mean pass@k or maj@k over the problems of an evaluation, nan if a problem has fewer samples."""
    problems = readable(lambda: run.sampled(split), run)
    if not problems or min(map(len, problems.values())) < k:
        return float("nan")
    scores: list[float] = []
    for rows in problems.values():
        right = [row["reward"] == 1.0 for row in rows]
        scores.append(pass_at_k(len(rows), sum(right), k) if kind == "pass" else maj_at_k([r["answer"] for r in rows], right, k))
    return sum(scores) / len(scores)


def _one(arms: Arms, what: str) -> str:
    if len(arms) != 1:
        raise NotTestable(f"{what} takes one arm, not {len(arms)}")
    return arms[0]


def _shared(a: Seeds, b: Seeds, combine: Callable[[float, float], float]) -> Seeds:
    return {seed: combine(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())}


def _value(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:  # noqa: ARG001
    return values(comparison, metric, _one(arms, "value"))


def _difference(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    arm, other = (values(comparison, metric, _one(side, "difference")) for side in (arms, against))
    return _shared(arm, other, lambda a, b: a - b)


def _ratio(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    arm, other = (values(comparison, metric, _one(side, "ratio")) for side in (arms, against))
    return _shared(arm, {seed: value for seed, value in other.items() if value}, lambda a, b: a / b)


def _interaction(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    if (len(arms), len(against)) != (2, 2):
        raise NotTestable("interaction takes two arms and two to hold them against")
    first, second = (_difference(comparison, metric, (a,), (b,)) for a, b in zip(arms, against, strict=True))
    return _shared(first, second, lambda a, b: a - b)


def curve(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of what the run has spent of its budget at each measurement, and what was measured."""
    if metric not in run.metrics:
        raise NotTestable(f"{run.label} has no curve of {metric}")
    limits: Mapping[str, Any] = run.config.get("budget") or {}
    unit = next((name for name in limits if limits[name] is not None), "flops")
    column = "step" if unit == "steps" else f"budget/{unit}"
    rows = run.metrics[[column, metric]].dropna()
    spent, measured_N = (np.asarray(rows[name], dtype=float) for name in (column, metric))
    return spent / max(spent[-1], 1.0) if len(spent) else spent, measured_N


def curves(comparison: Comparison, metric: str, selector: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The curve of an arm, by seed; the comparison must have asked it of one task and one model."""
    found = chosen(comparison, selector)
    if any(len(runs) != 1 for runs in found.values()):
        raise NotTestable(f"{selector} is of several tasks or models; name one")
    return {seed: curve(runs[0], metric) for seed, runs in found.items()}


def _late(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    def gained(selector: str) -> Seeds:
        return {
            seed: float(y[-1] - np.interp(0.5, x, y))
            for seed, (x, y) in curves(comparison, metric, selector).items()
            if len(y) > 1
        }

    return _shared(gained(_one(arms, "late")), gained(_one(against, "late")), lambda a, b: a - b)


def _slope(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    def slopes(selector: str) -> Seeds:
        found = curves(comparison, metric, selector)
        return {seed: float(np.polyfit(x, y, 1)[0]) for seed, (x, y) in found.items() if len(y) > 2}

    arm = slopes(_one(arms, "slope"))
    return _shared(arm, slopes(_one(against, "slope")), lambda a, b: a - b) if against else arm


def _peaks(found: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> dict[int, int]:
    """Where a seed's curve has its peak, as the mean of the other seeds' curves says: a seed's own noise cannot choose it."""
    if len(found) < 2:
        raise NotTestable("a peak is placed by the other seeds, and there are none")
    points = min(len(y) for _, y in found.values())
    if points < 3:
        raise NotTestable("a peak needs a curve of at least 3 points")
    heights = {seed: y[:points] for seed, (_, y) in found.items()}
    return {seed: int(np.mean([y for other, y in heights.items() if other != seed], axis=0).argmax()) for seed in sorted(heights)}


def _drop(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:  # noqa: ARG001
    found = curves(comparison, metric, _one(arms, "drop"))
    return {seed: float(found[seed][1][at] - found[seed][1][-1]) for seed, at in _peaks(found).items()}


def _peak(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:  # noqa: ARG001
    if len(arms) < 2:
        raise NotTestable("peak takes at least two arms")
    by_arm: list[tuple[Seeds, Seeds]] = []
    for arm in arms:
        at = _peaks(curves(comparison, metric, arm))
        kl = {seed: y for seed, (_, y) in curves(comparison, "eval/kl", arm).items()}
        where = {seed: sqrt(max(0.0, float(kl[seed][min(i, len(kl[seed]) - 1)]))) for seed, i in at.items()}
        by_arm.append(({seed: log2(n) for seed, n in values(comparison, "reward_model/pairs", arm).items()}, where))
    seeds = set.intersection(*(pairs.keys() & where.keys() for pairs, where in by_arm))
    return {
        seed: float(np.polyfit([pairs[seed] for pairs, _ in by_arm], [where[seed] for _, where in by_arm], 1)[0])
        for seed in sorted(seeds)
    }


def _frontier(comparison: Comparison, metric: str, arms: Arms, against: Arms) -> Seeds:
    if not arms or not against:
        raise NotTestable("frontier takes arms and arms to hold them against")

    def points(selectors: Sequence[str]) -> dict[int, list[tuple[float, float]]]:
        found: dict[int, list[tuple[float, float]]] = {}
        for selector in selectors:
            for seed, runs in chosen(comparison, selector).items():
                for run in runs:
                    if metric not in run.metrics or "eval/kl" not in run.metrics:
                        raise NotTestable(f"{selector} has no curve of {metric} and eval/kl")
                    rows = run.metrics[["eval/kl", metric]].dropna()
                    found.setdefault(seed, []).extend(zip(rows["eval/kl"].astype(float), rows[metric].astype(float), strict=True))
        return found

    ours, theirs = points(arms), points(against)
    whole = set[int].intersection(*(set(chosen(comparison, selector)) for selector in (*arms, *against)))
    return {seed: envelope_area(ours[seed], theirs[seed]) for seed in sorted(whole)}


STATISTICS: Mapping[Statistic, Callable[[Comparison, str, Arms, Arms], Seeds]] = {
    "value": _value,
    "difference": _difference,
    "ratio": _ratio,
    "late": _late,
    "slope": _slope,
    "drop": _drop,
    "peak": _peak,
    "interaction": _interaction,
    "frontier": _frontier,
}
