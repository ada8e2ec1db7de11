"""Whether training went well: what diverged, starved or was stopped by a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from reports.data import Data, data
from reports.leaderboard import is_base
from reports.load import Run
from reports.numbers import DASH, percent, si, span

TRUST = "TrustError"


@dataclass(frozen=True)
class Sign:
    """A column of the training log, and how one run's values are made one number."""

    name: str
    note: str
    column: str
    reduce: str  # mean, most, last
    write: Callable[[float], str] = percent


SIGNS = (
    Sign("grad norm", "mean", "grad_norm", "mean", si),
    Sign("grad norm", "most", "grad_norm", "most", si),
    Sign("clipped", "% of tokens", "clip_ratio/region_mean", "mean"),
    Sign("zero std", "% of groups", "frac_reward_zero_std", "mean"),
    Sign("zero std", "% at the end", "frac_reward_zero_std", "last"),
    Sign("truncated", "% of rollouts", "completions/clipped_ratio", "mean"),
    Sign("entropy", "at the end", "entropy", "last", si),
    Sign("reward model", "% ranked rightly", "reward_model/accuracy", "last"),
)


@dataclass(frozen=True)
class Row:
    """An arm: each sign as a mean over its seeds, and how many of its runs ended how."""

    label: str
    asked: int
    done: int
    checks: int  # runs that a trust check stopped
    broken: int  # values that were no number
    values: tuple[str, ...]


@dataclass(frozen=True)
class Health:
    signs: tuple[Sign, ...]
    rows: tuple[Row, ...]
    failures: tuple[tuple[str, str], ...]  # run, what the check said
    caption: str
    data: Data


def _one(run: Run, sign: Sign) -> float:
    if sign.column not in run.metrics:
        return nan
    values = [float(value) for value in run.metrics[sign.column].dropna()]
    if not values:
        return nan
    return {"mean": sum(values) / len(values), "most": max(values), "last": values[-1]}[sign.reduce]


def _mean(runs: Sequence[Run], sign: Sign) -> float:
    values = [value for run in runs if isfinite(value := _one(run, sign))]
    return sum(values) / len(values) if values else nan


def stopped(run: Run) -> bool:
    """Whether a trust check ended it."""
    return run.status == "failed" and TRUST in run.reason


def health(runs: Sequence[Run]) -> Health | None:
    """A row for each arm that trains; None where there is none."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.label != "?" and not is_base(run):
            arms.setdefault(run.label, []).append(run)
    if not arms:
        return None
    means = {label: {sign: _mean(found, sign) for sign in SIGNS} for label, found in arms.items()}
    signs = tuple(sign for sign in SIGNS if any(isfinite(said[sign]) for said in means.values()))
    rows = tuple(
        Row(
            label,
            len(found),
            sum(run.done for run in found),
            sum(map(stopped, found)),
            sum(len(run.notes) for run in found),
            tuple(sign.write(means[label][sign]) for sign in signs),
        )
        for label, found in arms.items()
    )
    failures = tuple((run.id, run.reason.splitlines()[-1]) for run in runs if stopped(run))
    caption = (
        f"Over the steps of each run, then means over {span([len(found) for found in arms.values()], 'run')} an arm, unfinished "
        f"ones as far as they went; no interval; {DASH} where an arm does not log it. Checks: every run compares the sampler's "
        "with the trainer's log-probabilities, loss mask, KL and loss at the start and frozen weights, and stops where one does "
        "not hold; so a finished run passed them all. Not numbers: logged quantities with a NaN or infinity."
    )
    columns = ("arm", "runs", "finished", "stopped_by_checks", "not_numbers", *(f"{s.column} ({s.reduce})" for s in signs))
    listed = [(r.label, r.asked, r.done, r.checks, r.broken, *(means[r.label][sign] for sign in signs)) for r in rows]
    return Health(signs, rows, failures, caption, data("training-health", columns, listed))
