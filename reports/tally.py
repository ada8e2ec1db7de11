"""What counts of a run's completions on its held-out problems, in one pass over the file: the completions are not kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

from reports.load import ReportError, Run

VOTERS = 3  # samples of a problem from which on a majority says something
LONGEST = 48
NUMBER = re.compile(r"[-+−]?\d[\w.]*")
CORRECT, TRUNCATED, ANOTHER, UNSAID = "correct", "truncated", "another answer than expected", "no reason kept"
Kind = tuple[bool, bool | None]  # right or not; reasoning valid or not, None where there is none or nobody judged it


@dataclass
class Tally:
    """The sampled completions of one run; the greedy ones are counted apart."""

    counts: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])  # problem: samples, right ones
    votes: dict[str, tuple[list[str | None], list[bool]]] = field(
        default_factory=dict[str, tuple[list[str | None], list[bool]]]
    )  # problem: answers, whether right; where there are enough for a majority
    tokens: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})  # of right and of wrong completions
    number: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    reasons: Counter[str] = field(default_factory=Counter[str])  # of wrong completions
    traces: Counter[Kind] = field(default_factory=Counter[Kind])  # of completions that were asked for their reasoning
    problem: str = ""  # why there is nothing

    @property
    def samples(self) -> int:
        return sum(self.number.values())

    def length(self, right: bool) -> float:
        """Mean tokens of the right or of the wrong completions; nan where there are none."""
        return self.tokens[right] / self.number[right] if self.number[right] else nan


def category(row: Mapping[str, Any]) -> str:
    """Why a completion is wrong, without what differs from problem to problem."""
    if row.get("truncated"):
        return TRUNCATED
    reason = row.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        return UNSAID
    if reason.startswith("expected "):
        return ANOTHER
    return NUMBER.sub("…", reason.split(":")[0]).strip()[:LONGEST] or UNSAID


def tally(run: Run) -> Tally:
    """Of the last evaluation on the split that the run is scored on; empty, with a reason, where it cannot be read."""
    try:
        rows = run.evaluation(run.split)
    except ReportError as error:
        return Tally(problem=str(error.problem))
    found = _tally(rows)
    if not found.samples:
        found.problem = "no completion of a held-out problem was kept"
    return found


def _tally(rows: Sequence[Mapping[str, Any]]) -> Tally:
    found = Tally()
    for row in rows:
        if row.get("greedy"):
            continue
        name, right = str(row.get("problem")), row.get("reward") == 1
        length, trace = row.get("length"), row.get("trace")
        n, c = found.counts.get(name, (0, 0))
        found.counts[name] = (n + 1, c + right)
        found.number[right] += 1
        found.tokens[right] += length if isinstance(length, int) else 0
        if not right:
            found.reasons[category(row)] += 1
        if "trace" in row:
            found.traces[right, trace if isinstance(trace, bool) else None] += 1
    if min((n for n, _ in found.counts.values()), default=0) >= VOTERS:
        _vote(found, rows)
    return found


def _vote(found: Tally, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if row.get("greedy"):
            continue
        answers, verdicts = found.votes.setdefault(str(row.get("problem")), ([], []))
        answer = row.get("answer")
        answers.append(answer if isinstance(answer, str) else None)
        verdicts.append(row.get("reward") == 1)
