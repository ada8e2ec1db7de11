"""Why completions are wrong: the verdicts' reasons, grouped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.data import Data, data
from reports.load import Run
from reports.numbers import percent, span
from reports.tally import UNSAID, Tally

MOST = 7
REST = "other reasons"


@dataclass(frozen=True)
class Part:
    """A stretch of an arm's bar, in percent of its completions."""

    reason: int
    at: float
    width: float
    said: str


@dataclass(frozen=True)
class Errors:
    reasons: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Part, ...], float], ...]  # arm, its wrong completions, and their share
    end: float  # the share at which the bars end
    caption: str
    data: Data


def errors(runs: Sequence[Run], tallies: Mapping[str, Tally]) -> Errors | None:
    """A bar an arm; None where no reason was kept."""
    found: dict[str, Counter[str]] = {}
    samples = Counter[str]()
    seeds = Counter[str]()
    for run in runs:
        if run.id in tallies and tallies[run.id].samples:
            found.setdefault(run.label, Counter()).update(tallies[run.id].reasons)
            samples[run.label] += tallies[run.id].samples
            seeds[run.label] += 1
    total = sum(found.values(), Counter[str]())
    if not set(total) - {UNSAID}:
        return None
    ranked = [reason for reason, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    shown = ranked if len(ranked) <= MOST else [*ranked[: MOST - 1], REST]
    end = max(counts.total() / samples[label] for label, counts in found.items()) or 1.0
    rows: list[tuple[str, tuple[Part, ...], float]] = []
    for label, counts in found.items():
        parts: list[Part] = []
        at = 0.0
        for number, reason in enumerate(shown):
            n = sum(counts[r] for r in ranked[MOST - 1 :]) if reason == REST else counts[reason]
            width = 100 * n / samples[label] / end
            if n:
                said = f"{label}, {reason}: {n:,} of {samples[label]:,} completions, {percent(n / samples[label])}%"
                parts.append(Part(number, round(at, 2), round(width, 2), said))
            at += width
        rows.append((label, tuple(parts), counts.total() / samples[label]))
    caption = (
        f"Share of the sampled completions of held-out problems that are wrong, by the verifier's reason, "
        f"over {span(list(seeds.values()), 'finished seed')} and {span(list(samples.values()), 'completion')} an arm; "
        "shares of counts, no interval. Reasons that differ only in a number count as one."
    )
    listed = [
        (label, reason, counts[reason], samples[label], counts[reason] / samples[label])
        for label, counts in found.items()
        for reason in ranked
    ]
    columns = ("arm", "reason", "completions", "of", "share")
    return Errors(tuple(shown), tuple(rows), end, caption, data("wrong-by-reason", columns, listed))
