"""The same held-out problems side by side: what each arm wrote, and how that differs from the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from reports.data import Data, data
from reports.leaderboard import is_base
from reports.load import ReportError, Run

MOST_PROBLEMS = 40
FEW = 8
LONGEST = 80  # characters of an answer in the data

GAINED, LOST, APART, CUT, DOUBT = "gained", "lost", "apart", "truncated", "doubt"
FILTERS = (
    (GAINED, "base wrong → arm right"),
    (LOST, "base right → arm wrong"),
    (APART, "methods disagree"),
    (CUT, "truncated"),
    (DOUBT, "suspicious reward"),
)


@dataclass(frozen=True)
class Answer:
    """One arm's greedy completion of one problem."""

    label: str
    completion: str
    correct: bool
    truncated: bool
    reward: float
    answer: str
    reason: str
    length: int
    doubt: str  # why its reward is worth a look, or nothing
    kinds: tuple[str, ...]  # the filters that show it


@dataclass(frozen=True)
class Problem:
    prompt: str
    expected: str
    band: str
    answers: tuple[Answer | None, ...]  # in the order of the labels

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({kind for answer in self.answers if answer for kind in answer.kinds}))


@dataclass(frozen=True)
class Samples:
    seed: int
    labels: tuple[str, ...]
    problems: tuple[Problem, ...]
    total: int
    counts: Mapping[str, int]  # of all problems, shown or not

    @property
    def data(self) -> Data:
        """The verdicts on the problems that are shown; their completions stand on the page."""
        columns = ("prompt", "expected", "arm", "answer", "reward", "reason", "tokens", "doubt")
        rows = [
            (problem.prompt, problem.expected, a.label, a.answer[:LONGEST], a.reward, a.reason[:LONGEST], a.length, a.doubt)
            for problem in self.problems
            for a in problem.answers
            if a
        ]
        return data("verdicts", columns, rows)


def _greedy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """One completion a problem: the greedy one, or the first where none is."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = str(row.get("problem"))
        if name not in found or (row.get("greedy") and not found[name].get("greedy")):
            found[name] = row
    return found


def _correct(row: Mapping[str, Any]) -> bool:
    return row.get("reward") == 1


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _rows(run: Run) -> list[dict[str, Any]]:
    """None where the file is broken, which the notices say."""
    try:
        return run.evaluation("test")
    except ReportError:
        return []


def _doubt(row: Mapping[str, Any]) -> str:
    reward, answer = row.get("reward"), row.get("answer")
    if not isinstance(reward, int | float) or not isfinite(reward):
        return "no reward"
    if reward not in (0, 1):
        return f"rewarded {reward:g}"
    if reward == 1 and row.get("truncated"):
        return "right, and truncated"
    if reward == 1 and row.get("trace") is False:
        return "right, and its reasoning is not valid"
    if reward == 1 and "answer" in row and not answer:
        return "right, without an answer"
    if reward == 0 and isinstance(answer, str) and answer and answer == row.get("expected"):
        return "wrong, with the expected answer"
    return ""


def _answer(label: str, row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Answer:
    correct, truncated, doubt = _correct(row), bool(row.get("truncated")), _doubt(row)
    kinds = [kind for kind, given in ((CUT, truncated), (DOUBT, doubt)) if given]
    if base is not None and correct != _correct(base):
        kinds.append(GAINED if correct else LOST)
    reward = row.get("reward")
    length = row.get("length")
    return Answer(
        label,
        _text(row.get("completion")),
        correct,
        truncated,
        float(reward) if isinstance(reward, (int, float)) else float("nan"),
        _text(row.get("answer")),
        _text(row.get("reason")),
        length if isinstance(length, int) else 0,
        doubt,
        tuple(kinds),
    )


def _compared(answers: Sequence[Answer | None], base: str) -> tuple[Answer | None, ...]:
    """Marked where some trained arm is right and another wrong."""
    trained = {answer.correct for answer in answers if answer and answer.label != base}
    if len(trained) < 2:
        return tuple(answers)
    return tuple(replace(a, kinds=(*a.kinds, APART)) if a and a.label != base else a for a in answers)


def _chosen(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The first few of every kind, then from the top, in the order of the problems."""
    picked: dict[int, None] = {}
    for kind, _ in FILTERS:
        picked |= dict.fromkeys([i for i, problem in enumerate(problems) if kind in problem.kinds][:FEW])
    for i in range(len(problems)):
        if len(picked) >= MOST_PROBLEMS:
            break
        picked[i] = None
    return tuple(problems[i] for i in sorted(picked))


def samples(runs: Sequence[Run]) -> Samples | None:
    """Greedy completions of the test problems for the seed that most arms finished (the lowest of those)."""
    done = [run for run in runs if run.done and run.seed is not None]
    if not done:
        return None
    seeds = [run.seed for run in done if run.seed is not None]
    seed = min(set(seeds), key=lambda s: (-seeds.count(s), s))
    arms = {run.label: _greedy(_rows(run)) for run in done if run.seed == seed}
    arms = {label: rows for label, rows in arms.items() if rows}
    if not arms:
        return None
    base = next((run.label for run in done if is_base(run) and run.seed == seed and run.label in arms), "")
    start = arms.get(base, {})
    problems: list[Problem] = []
    for name in dict.fromkeys(name for rows in arms.values() for name in rows):
        first = next(rows[name] for rows in arms.values() if name in rows)
        answers = [_answer(label, rows[name], start.get(name)) if name in rows else None for label, rows in arms.items()]
        prompt, expected, band = (_text(first.get(key)) for key in ("prompt", "expected", "band"))
        problems.append(Problem(prompt, expected, band, _compared(answers, base)))
    counts = {kind: sum(kind in problem.kinds for problem in problems) for kind, _ in FILTERS}
    return Samples(seed, tuple(arms), _chosen(problems), len(problems), counts)
