"""One frame per task and model: what each arm reached, at what cost, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import pandas as pd

from reports.finding import finding
from reports.load import HEADLINE, Comparison, Run, by_seed
from reports.numbers import percent, points, si
from reports.stats import Interval, paired, t_interval

__all__ = ["Board", "finding", "leaderboards", "records", "text"]

CONTROL_WORDS = ("control", "random", "shuffled", "format", "self-teacher", "again")
MEANS = {
    "greedy": "test/greedy",
    "reward": "test/reward",
    "length": "test/mean_length",
    "truncated": "test/truncated",
    "kl": "test/kl",
    "sampled_tokens": "budget/sampled_tokens",
    "scored_tokens": "budget/scored_tokens",
    "trained_tokens": "budget/trained_tokens",
    "verifier_calls": "budget/verifier_calls",
    "flops": "budget/flops",
    "ancestors_flops": "ancestors/flops",
    "seconds": "budget/seconds",
    "eval_seconds": "budget/eval_seconds",
    "peak_bytes": "budget/peak_bytes",
}


@dataclass(frozen=True)
class Board:
    """The leaderboard of one task and one model."""

    task: str
    model: str
    frame: pd.DataFrame
    split: str = "test"  # where pass@1 was measured


def is_base(run: Run) -> bool:
    return run.method == "base"


def is_control(run: Run) -> bool:
    """Whether an arm is there to be no better than nothing: its label, or the reward it trains on, says so."""
    said = f"{run.label} {run.config.get('options', {}).get('source', '')}".lower()
    return not is_base(run) and any(word in said for word in CONTROL_WORDS)


def _forgetting(runs: list[Run], base: list[Run]) -> Interval:
    """Change of the mean pass@1 on the other tasks against the base, over the tasks that both were asked."""
    names = [{column for run in side for column in run.metrics if _is_other(column)} for side in (runs, base)]
    shared = sorted(set.intersection(*names))
    if not shared:
        return t_interval([])
    mine, theirs = ([by_seed(side, name) for name in shared] for side in (runs, base))
    seeds = set.intersection(*(set(values) for values in (*mine, *theirs)))
    return t_interval(sum(m[seed] - b[seed] for m, b in zip(mine, theirs, strict=True)) / len(shared) for seed in sorted(seeds))


def _is_other(column: str) -> bool:
    return column.startswith("other/") and column.endswith("/pass@1")


def _spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _row(runs: list[Run], base: list[Run]) -> dict[str, Any]:
    first = runs[0]
    scores = by_seed(runs, HEADLINE)
    nothing = t_interval([])
    against = {name: nothing if is_base(first) else paired(by_seed(runs, key), by_seed(base, key))
               for name, key in {"delta": HEADLINE, "ood_delta": "ood/pass@1"}.items()}  # fmt: skip
    row: dict[str, Any] = {
        "arm": first.label,
        "method": first.method,
        "base": is_base(first),
        "control": is_control(first),
        "asked": len(runs),
        "done": sum(run.done for run in runs),
        "failed": sum(run.status == "failed" for run in runs),
        "absent": sum(run.status in ("missing", "unfinished") for run in runs),
        "scores": scores,
        **_spread("pass@1", t_interval(scores.values())),
        **_spread("delta", against["delta"]),
        "delta_seeds": against["delta"].n,
        **_spread("ood", t_interval(by_seed(runs, "ood/pass@1").values())),
        **_spread("ood_delta", against["ood_delta"]),
        **_spread("forgetting", nothing if is_base(first) else _forgetting(runs, base)),
    }
    for name, key in MEANS.items():
        values = list(by_seed(runs, key).values())
        row[name] = sum(values) / len(values) if values else nan
    return row


def leaderboards(comparison: Comparison) -> list[Board]:
    """A board for each task and model, its arms ranked by mean pass@1 on the test split, unscored ones last."""
    boards: list[Board] = []
    for task, model in comparison.sections:
        arms: dict[str, list[Run]] = {}
        for run in comparison.of(task, model):
            arms.setdefault(run.label, []).append(run)
        base = [run for runs in arms.values() for run in runs if is_base(run)]
        frame = pd.DataFrame([_row(runs, base) for runs in arms.values()])
        frame = frame.sort_values("pass@1", ascending=False, kind="stable", na_position="last", ignore_index=True)
        frame.insert(0, "rank", range(1, len(frame) + 1))
        boards.append(Board(task, model, frame, comparison.of(task, model)[0].split))
    return boards


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON can hold them: no nan, seeds as strings."""
    rows: list[dict[str, Any]] = []
    for row in frame.to_dict("records"):
        row["scores"] = {str(seed): value for seed, value in row["scores"].items()}
        rows.append({str(k): None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()})
    return rows


def plus_minus(row: Any, name: str, write: Callable[[float], str]) -> str:
    """`58.1 ± 4.3` or `+35.4 ± 4.4`: the mean and half of its interval's width, which is symmetric."""
    if not isfinite(row[name]) or not isfinite(row[f"{name}_low"]):
        return write(row[name])
    return f"{write(row[name])} ± {percent((row[f'{name}_high'] - row[f'{name}_low']) / 2)}"


def text(frame: pd.DataFrame) -> str:
    """An aligned table for the terminal: percent and points, 95% t intervals over seeds; the cost of earlier stages if any."""
    staged = bool(frame["ancestors_flops"].notna().any())
    header = ["arm", "seeds", "pass@1", "Δ base", "greedy", "ood", "Δ ood", "length", "cut", "KL", "tokens", "FLOPs",
              *(["before"] if staged else []), "s"]  # fmt: skip
    table = [header]
    for row in frame.to_dict("records"):
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        table.append(
            [
                "".join(c if c.isprintable() else "?" for c in row["arm"]),
                f"{row['done']}/{row['asked']}{failed}",
                plus_minus(row, "pass@1", percent),
                plus_minus(row, "delta", points),
                percent(row["greedy"]),
                percent(row["ood"]),
                plus_minus(row, "ood_delta", points),
                si(row["length"]),
                percent(row["truncated"]),
                si(row["kl"]),
                si(row["sampled_tokens"] + row["trained_tokens"]),
                si(row["flops"]),
                *([f"+{si(row['ancestors_flops'])}" if isfinite(row["ancestors_flops"]) else ""] if staged else []),
                si(row["seconds"]),
            ]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )
