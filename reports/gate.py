"""`grpo.pass@1 < sft.pass@1`: a regression that a comparison must not show, decided on its interval over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from harness.errors import meant
from reports.load import Comparison, ReportError, Run, by_seed
from reports.numbers import span
from reports.stats import Interval, paired, t_interval

EXPRESSION = re.compile(r"\s*(?P<left>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<right>[^<>=]+?)\s*")


@dataclass(frozen=True)
class Term:
    """What an arm measured, or a number."""

    arm: str = ""
    column: str = ""
    number: float = 0.0


@dataclass(frozen=True)
class Gate:
    """`left sign right` is the regression."""

    text: str
    left: Term
    sign: str
    right: Term

    def holds(self, difference: Interval) -> bool:
        """Whether the whole interval of left − right says so; one seed has none, and so never does."""
        bound = difference.high if self.sign.startswith("<") else -difference.low
        return bound <= 0 if self.sign.endswith("=") else bound < 0


@dataclass(frozen=True)
class Decision:
    """A gate on one task and one model."""

    gate: Gate
    task: str
    model: str
    difference: Interval
    failed: bool
    lost: int = 0  # runs of its arms that failed or are to go

    @property
    def text(self) -> str:
        """One line: the regression, its interval, and whether it holds."""
        d = self.difference
        if isfinite(d.low):
            said = f"difference {d.mean:+.4g}, 95% CI {d.low:+.4g} to {d.high:+.4g}, {d.n} seeds"
        else:
            said = f"{span([d.n], 'seed')} in common, too few for an interval"
        if self.lost:
            said += f", {self.lost} run{'s' * (self.lost != 1)} failed or to go"
        verdict = "passed, the interval does not say so"
        if self.failed:
            verdict = "FAILED, " + ("the interval says so" if isfinite(d.low) else "it cannot be checked")
        return f"gate {self.gate.text} · {self.task} · {self.model}: {verdict} ({said})"


def _refused(text: str, problem: str) -> ReportError:
    return ReportError(Path("--fail-if"), f"{text!r}: {problem}")


def _term(text: str, comparison: Comparison, expression: str) -> Term:
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not isfinite(number):
            raise _refused(expression, f"{text} is not a finite number")
        return Term(number=number)
    arm = max((label for label in comparison.labels if text.startswith(f"{label}.")), key=len, default="")
    if not arm:
        raise _refused(expression, f"no arm in {text!r}{meant(text.partition('.')[0], comparison.labels)}")
    metric = text[len(arm) + 1 :]
    known = {str(column) for run in comparison.runs if run.label == arm for column in run.metrics}
    column = next((name for name in (metric, f"test/{metric}") if name in known), "")
    if not column:
        names = sorted(name.removeprefix("test/") for name in known)
        raise _refused(expression, f"{arm} has no metric {metric!r}{meant(metric, names)}")
    return Term(arm, column)


def parse(text: str, comparison: Comparison) -> Gate:
    """A gate on arms and metrics that are there. Raises ReportError for anything else."""
    match = EXPRESSION.fullmatch(text)
    if not match:
        raise _refused(text, "not ARM.METRIC < ARM.METRIC or a number (also >, <= and >=), such as grpo.pass@1 < sft.pass@1")
    left, right = (_term(match[side], comparison, text) for side in ("left", "right"))
    if not left.arm and not right.arm:
        raise _refused(text, "names no arm")
    return Gate(text, left, match["sign"], right)


def _values(term: Term, runs: Sequence[Run]) -> Mapping[int, float]:
    return by_seed((run for run in runs if run.label == term.arm), term.column)


def _difference(gate: Gate, runs: Sequence[Run]) -> Interval:
    if gate.left.arm and gate.right.arm:
        return paired(_values(gate.left, runs), _values(gate.right, runs))
    if gate.left.arm:
        return t_interval(value - gate.right.number for value in _values(gate.left, runs).values())
    return t_interval(gate.left.number - value for value in _values(gate.right, runs).values())


def decide(gate: Gate, comparison: Comparison) -> list[Decision]:
    """One decision for each task and model; where runs are missing and the rest gives no interval, the gate does not pass."""
    decisions: list[Decision] = []
    for task, model in comparison.sections:
        runs = comparison.of(task, model)
        difference = _difference(gate, runs)
        lost = sum(run.label in (gate.left.arm, gate.right.arm) and not run.done for run in runs)
        unknown = lost > 0 and not isfinite(difference.low)
        decisions.append(Decision(gate, task, model, difference, unknown or gate.holds(difference), lost))
    return decisions
