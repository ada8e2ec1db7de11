"""What a comparison will take, before it starts: tokens, FLOPs and hours, from runs that have been measured already."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import median, variance
from typing import Any

from harness import files, models, plugins
from harness.comparison import Comparison, RunConfig
from harness.errors import BakeoffError
from harness.meter import Budget

FLOPS_PER_SECOND = 2e10  # of a run where none has been measured: the quickstart's on two cores (docs/scale.md)
Measured = tuple[Mapping[str, Any], Mapping[str, Any]]  # config.json of a finished run, the last line of its metrics.jsonl


@dataclass(frozen=True)
class Capacity:
    """What some runs ask for, all of them together; None where their budget does not say and nothing like them was measured."""

    runs: int
    flops: float | None
    tokens: float | None  # sampled, scored and trained
    hours: float | None  # of one process after another, evaluation included
    measured: int  # of the runs, how many are estimated from others like them


@dataclass(frozen=True)
class Cost:
    flops: float
    tokens: float
    seconds: float


def measured(root: Path) -> list[Measured]:
    """The finished runs of a root; one whose files are damaged is left out."""
    found = list[Measured]()
    for done in sorted((root / "runs").glob("*/DONE")):
        with suppress(OSError, ValueError, BakeoffError):
            if last := files.tail_jsonl(done.parent / "metrics.jsonl"):
                found.append((files.read_json(done.parent / "config.json"), last))
    return found


def capacity(comparison: Comparison, runs: Sequence[RunConfig], known: Sequence[Measured]) -> Capacity:
    """Of these runs. A run costs what finished ones of its method and model did, scaled to its budget; else what is assumed."""
    alike = defaultdict[tuple[str, str, str], list[Measured]](list)
    speeds = list[float]()
    for config, last in known:
        alike[config["method"], config["model"], config["task"]].append((config, last))
        if last["budget/flops"] > 0 and last["budget/seconds"] > 0:
            speeds.append(last["budget/flops"] / last["budget/seconds"])
    speed = median(speeds) if speeds else FLOPS_PER_SECOND
    met = {model: weights(sizes(comparison, model)) for model in comparison.models}
    costs = list[Cost | None]()
    for run in runs:
        others = [scaled(run.budget, last) for _, last in alike[run.method, run.model, run.task]]
        costs.append(typical(others) if others else assumed(run, met[run.model], speed))
    sure = [cost for cost in costs if cost]
    whole = len(sure) == len(costs)
    return Capacity(
        runs=len(runs),
        flops=sum(cost.flops for cost in sure) if whole else None,
        tokens=sum(cost.tokens for cost in sure) if whole else None,
        hours=sum(cost.seconds for cost in sure) / 3600 if whole else None,
        measured=sum(bool(alike[run.method, run.model, run.task]) for run in runs),
    )


def scaled(budget: Budget, last: Mapping[str, Any]) -> Cost:
    """What a run would have cost with this budget, by its last line; the time of its evaluations stays."""
    spent = {name: last["step"] if name == "steps" else last[f"budget/{name}"] for name in vars(budget)}
    shares = [limit / spent[name] for name, limit in vars(budget).items() if limit is not None and spent[name] > 0]
    share = min(shares, default=1.0)
    tokens = sum(last[f"budget/{kind}_tokens"] for kind in ("sampled", "scored", "trained"))
    return Cost(share * last["budget/flops"], share * tokens, share * last["budget/seconds"] + last["budget/eval_seconds"])


def typical(costs: Sequence[Cost]) -> Cost:
    return Cost(*(median(getattr(cost, name) for cost in costs) for name in ("flops", "tokens", "seconds")))


def assumed(run: RunConfig, met: int | None, speed: float) -> Cost | None:
    """All tokens trained on, at `speed` FLOPs a second, and evaluated to their longest.

    None where the budget is in steps alone, or the model's config does not say how many weights a token meets.
    """
    if met is None:
        return None
    b, e, task, forward = run.budget, run.evaluation, plugins.find("tasks", run.task), 2 * met
    limits = (b.flops, 3 * forward * (b.trained_tokens or 0), forward * (b.sampled_tokens or 0), speed * (b.seconds or 0))
    flops = min((limit for limit in limits if limit), default=None)
    if flops is None:
        return None
    completions = (e.points + 1) * e.validation_problems * e.validation_samples
    if e.test_problems:
        completions += e.test_problems * (e.test_samples + 1) + e.ood_problems * e.ood_samples
        completions += len(e.other_tasks) * e.other_problems
    evaluation = 3 * forward * completions * task.max_new_tokens  # sampled, and read by the policy and by its base
    return Cost(flops, flops / (3 * forward), (flops + evaluation) / speed)


def weights(sizes: Mapping[str, Any]) -> int | None:
    """About how many a token meets, by the sizes in a config: those of attention, a gated MLP and the head; None without them."""
    hidden, layers = sizes.get("hidden_size"), sizes.get("num_hidden_layers")
    if hidden is None or layers is None:
        return None
    return layers * hidden * (4 * hidden + 3 * sizes.get("intermediate_size", 4 * hidden)) + hidden * sizes.get("vocab_size", 0)


def sizes(comparison: Comparison, model: str) -> Mapping[str, Any]:
    """What the config of a model says."""
    recipe = comparison.recipe(model, 0)
    if recipe is None:
        return files.read_json(Path(model) / "config.json")
    return recipe.architecture or models.presets()[recipe.start].architecture


def spread(run: RunConfig, known: Sequence[Measured]) -> tuple[float, int]:
    """The standard deviation, over seeds, of the difference of two arms' scores, and how many pairs of arms it was measured on.

    Those are finished arms of the same task, model and evaluation, pair by pair under one budget, their variances averaged.
    Without any, it is that of decoding alone at a score of one half: training adds to it, what both arms share takes from it.
    """
    e = run.evaluation
    score = "test/pass@1" if e.test_problems else "eval/pass@1"
    asked = json.dumps([run.task, run.model, asdict(e)], sort_keys=True)
    arms = defaultdict[str, dict[str, dict[int, float]]](lambda: defaultdict(dict))  # by budget, by arm, by seed
    for config, last in known:
        if json.dumps([config["task"], config["model"], config["evaluation"]], sort_keys=True) == asked and score in last:
            arm = {k: v for k, v in config.items() if k not in ("seed", "start", "base")}
            arms[json.dumps(config["budget"])][json.dumps(arm, sort_keys=True)][config["seed"]] = last[score]
    variances = [
        variance([a[seed] - b[seed] for seed in a.keys() & b.keys()])
        for of_budget in arms.values()
        for a, b in combinations(of_budget.values(), 2)
        if len(a.keys() & b.keys()) > 1
    ]
    if variances:
        return sqrt(sum(variances) / len(variances)), len(variances)
    completions = e.test_problems * e.test_samples or e.validation_problems * e.validation_samples
    return sqrt(2 * 0.25 / completions), 0
