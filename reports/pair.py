"""Two runs side by side: what differs in their settings, and on which problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.load import ReportError, load_run
from reports.provenance import flat
from reports.stats import Interval, clustered


@dataclass(frozen=True)
class Flip:
    """A problem that the two runs answer with unequal success: shares of right completions, and a completion of each."""

    problem: str
    prompt: str
    expected: str
    before: float
    after: float
    completion_before: str
    completion_after: str


@dataclass(frozen=True)
class Pair:
    """`after` against `before` on the problems of the test split that both were asked."""

    before: str
    after: str
    settings: tuple[tuple[str, str, str], ...]  # key, before, after
    scores: tuple[float, float]
    difference: Interval  # over problems: about these two checkpoints, not about their methods
    gained: tuple[Flip, ...]  # largest change first
    lost: tuple[Flip, ...]


def pair(root: Path, before: str, after: str) -> Pair:
    """Compare two runs. Raises ReportError for one that has not finished, or if fewer than two problems were asked of both."""
    runs = [load_run(root, identity) for identity in (before, after)]
    for run in runs:
        if not run.done:
            raise ReportError(run.directory, f"{run.status}: {run.reason}; only finished runs can be compared")
    asked = [run.sampled(run.split) for run in runs]
    shared = [problem for problem in asked[0] if problem in asked[1]]
    if len(shared) < 2:
        raise ReportError(runs[1].directory, f"shares {len(shared)} problems of its {runs[0].split} split with {before}; needs 2")
    shares = [{p: sum(row["reward"] == 1.0 for row in rows[p]) / len(rows[p]) for p in shared} for rows in asked]
    flips = [
        Flip(
            p,
            asked[0][p][0]["prompt"],
            asked[0][p][0]["expected"],
            shares[0][p],
            shares[1][p],
            asked[0][p][0]["completion"],
            asked[1][p][0]["completion"],
        )
        for p in shared
    ]
    flips.sort(key=lambda flip: -abs(flip.after - flip.before))
    means = [sum(share.values()) / len(share) for share in shares]
    return Pair(
        before,
        after,
        _settings(runs[0].config, runs[1].config),
        (means[0], means[1]),
        clustered(shares[1], shares[0]),
        tuple(flip for flip in flips if flip.after > flip.before),
        tuple(flip for flip in flips if flip.after < flip.before),
    )


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    one, other = flat(before), flat(after)
    return tuple((key, one.get(key, "–"), other.get(key, "–")) for key in one | other if one.get(key) != other.get(key))
