"""What lm-eval found of the runs, and whether it agrees with the project's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from reports.data import Data, data
from reports.load import Comparison, ReportError, Run, read_json
from reports.numbers import span
from reports.stats import Interval, t_interval

FILE = "lm_eval.json"
Key = tuple[str, str, str, str, str]  # what was asked, the metric, and the task, model and label of the arm


@dataclass(frozen=True)
class Score:
    """One metric of one task of lm-eval's, over the seeds of an arm."""

    asked: str
    metric: str
    task: str  # that the arm was trained on
    model: str
    arm: str
    interval: Interval
    problems: str  # how many
    compared: int  # greedy verdicts that the run's own test has too, over all seeds
    agreed: int


@dataclass(frozen=True)
class Stock:
    scores: tuple[Score, ...]
    several: bool  # tasks or models that arms were trained on
    compared: int
    agreed: int
    notices: tuple[str, ...]

    @property
    def data(self) -> Data:
        """The table."""
        columns = ("asked", "metric", "task", "model", "arm", "score", "low", "high", "seeds", "problems", "compared", "agreed")
        return data(
            "lm-eval",
            columns,
            [
                (s.asked, s.metric, s.task, s.model, s.arm, i.mean, i.low, i.high, i.n, s.problems, s.compared, s.agreed)
                for s in self.scores
                for i in [s.interval]
            ],
        )


@dataclass(frozen=True)
class _Found:
    """One task of one run's file."""

    problems: int
    scores: Mapping[str, float]
    compared: int
    agreed: int


def _found(run: Run, asked: str, said: Any, own: Mapping[str, bool]) -> _Found:
    """Raises ValueError for what `bakeoff lm-eval` does not write."""
    try:
        problems = int(said["problems"])
        scores = {str(name): float(one["score"]) for name, one in said["scores"].items()}
        verdicts = {str(problem): float(value) == 1.0 for problem, value in said.get("verdicts", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{asked} is not what bakeoff lm-eval writes ({type(error).__name__}: {error})") from None
    both = verdicts.keys() & own.keys() if asked == run.task else set[str]()
    return _Found(problems, scores, len(both), sum(verdicts[problem] == own[problem] for problem in both))


def _of_run(run: Run) -> dict[str, _Found]:
    """By task of lm-eval's. Raises ValueError for a file that cannot be read."""
    if not (path := run.directory / FILE).exists():
        return {}
    own = {str(row.get("problem")): row.get("reward") == 1.0 for row in run.evaluation("test") if row.get("greedy")}
    return {asked: _found(run, asked, said, own) for asked, said in read_json(path).items()}


def _score(key: Key, seeds: Sequence[_Found]) -> Score:
    asked, metric, task, model, arm = key
    interval = t_interval(value for one in seeds if isfinite(value := one.scores[metric]))
    verdicts = seeds if metric == "greedy" else []
    compared, agreed = sum(one.compared for one in verdicts), sum(one.agreed for one in verdicts)
    problems = span([one.problems for one in seeds], "problem")
    return Score(asked, metric, task, model, arm, interval, problems, compared, agreed)


def stock(comparison: Comparison) -> Stock | None:
    """None where no run was asked. A file that is broken is a notice and otherwise as if it were not there."""
    seeds: dict[Key, list[_Found]] = {}
    notices: list[str] = []
    for run in comparison.runs:
        try:
            found = _of_run(run) if run.done else {}
        except ValueError as error:
            notices.append(f"{run.id}/{FILE}: {error.problem if isinstance(error, ReportError) else error}")
            continue
        for asked, one in found.items():
            for metric in one.scores:
                seeds.setdefault((asked, metric, run.task, run.model, run.label), []).append(one)
    if not seeds and not notices:
        return None
    first = {question: i for i, question in enumerate(dict.fromkeys(key[:2] for key in seeds))}
    scores = tuple(_score(key, seeds[key]) for key in sorted(seeds, key=lambda key: first[key[:2]]))
    compared, agreed = (sum(getattr(score, name) for score in scores) for name in ("compared", "agreed"))
    return Stock(scores, len(comparison.sections) > 1, compared, agreed, tuple(notices))
