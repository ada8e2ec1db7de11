"""What runs leave about the base that they start from: its facts, whom its experts are asked by, and its drafts.

Runs of before have none of it, and a file that is broken is one notice and otherwise as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import pandas as pd

from reports.load import Comparison, ReportError, Run, read_json, read_jsonl
from reports.numbers import said_seeds, span

LARGEST = 1e300
DRAFTS = ("drafted", "accepted", "rounds", "tokens", "plain_seconds", "drafted_seconds", "prompts", "different", "ties")


@dataclass(frozen=True)
class Base:
    """A base as base.json describes it."""

    identity: str
    facts: Mapping[str, float]
    families: Mapping[str, float]  # held-out loss of each
    masked: Mapping[int, float]  # held-out loss without the so many best experts
    load: Mapping[str, np.ndarray]  # of each family, [L, E] over the mean of the layer
    metrics: pd.DataFrame  # of pretraining

    def fact(self, name: str) -> float:
        return self.facts.get(name, nan)


@dataclass(frozen=True)
class Shift:
    """The load of the experts, [L, E], on a run's own held-out completions at its start and at its end."""

    base: str
    seed: int
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Left:
    """All of it. A base that several seeds share is there once, under the first of them: it was pretrained once."""

    bases: Mapping[str, Mapping[int, Base]]  # of each model, by seed
    shifts: Mapping[tuple[str, str, str], Sequence[Shift]]  # of model, task and arm
    drafts: Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]  # of model and task, by seed
    notices: tuple[str, ...]


def _numbers(value: Any, what: str) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is not an object")
    return {str(key): float(x) for key, x in value.items() if _is_number(x)}


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and -LARGEST < x < LARGEST


def _load(value: Any) -> np.ndarray:
    try:
        load = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        load = np.zeros(0)
    if load.ndim != 2 or not load.size or not np.isfinite(load).all() or (load < 0).any():
        raise ValueError("a load that is not a number for each layer and expert")
    return load


def _base(identity: str, said: Mapping[str, Any]) -> Base:
    load, curve = said.get("load", {}), said.get("curve", [])
    if not isinstance(load, Mapping) or not isinstance(curve, Sequence):
        raise ValueError("load is not an object, or curve not a list")
    return Base(
        identity,
        _numbers(said, "base"),
        _numbers(said.get("families", {}), "families"),
        {int(r): loss for r, loss in sorted(_numbers(said.get("masked", {}), "masked").items(), key=lambda item: int(item[0]))},
        {str(family): _load(value) for family, value in load.items()},
        pd.DataFrame([_numbers(row, "a row of the curve") for row in curve]),
    )


def _shift(run: Run, seed: int, rows: Sequence[Mapping[str, Any]]) -> Shift | None:
    """None where the run took no step."""
    own = {row["step"]: row.get("load") for row in rows if row.get("task") == run.task and isinstance(row.get("step"), int)}
    if len(own) < 2 or 0 not in own:
        return None
    before, after = _load(own[0]), _load(own[max(own)])
    if before.shape != after.shape:
        raise ValueError("loads of several shapes")
    return Shift(_identity(run), seed, before, after)


def _drafts(said: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {str(task): _numbers(value, str(task)) for task, value in said.items()}
    for task, counts in found.items():
        if not set(DRAFTS) <= set(counts) or min(counts.values()) < 0 or counts["accepted"] > counts["drafted"]:
            raise ValueError(f"{task}: counts that are missing or cannot be")
    return found


def _identity(run: Run) -> str:
    return str(run.config.get("base") or run.model)


def left(comparison: Comparison) -> Left:
    """What the runs of a comparison left, smallest seed first."""
    bases = dict[str, dict[int, Base]]()
    shifts = dict[tuple[str, str, str], list[Shift]]()
    drafts = dict[tuple[str, str], dict[int, dict[str, float]]]()
    notices, seen = list[str](), set[tuple[str, ...]]()
    for run in sorted((run for run in comparison.runs if run.seed is not None), key=lambda run: run.seed or 0):
        seed, base = run.seed or 0, (run.model, _identity(run))
        for name in ("base.json", "experts.jsonl", "drafts.json"):
            path = run.directory / name
            if not path.exists() or (name != "base.json" and not run.done):
                continue
            try:
                if name == "experts.jsonl":
                    shift = _shift(run, seed, read_jsonl(path))
                    if shift:
                        shifts.setdefault((run.model, run.task, run.label), []).append(shift)
                elif name == "base.json" and base not in seen:
                    found = _base(base[1], read_json(path))
                    bases.setdefault(run.model, {}).setdefault(seed, found)
                    seen.add(base)
                elif name == "drafts.json":
                    for task, counts in _drafts(read_json(path)).items():
                        if (*base, task) not in seen:
                            drafts.setdefault((run.model, task), {})[seed] = counts
                            seen.add((*base, task))
            except ReportError as error:
                notices.append(f"{run.id}/{name}: {error.problem}")
            except ValueError as error:
                notices.append(f"{run.id}/{name}: {error}")
    asked = [model for _, model in comparison.sections]
    ordered = {model: bases[model] for model in dict.fromkeys(asked) if model in bases}
    return Left(ordered, shifts, drafts, tuple(notices))


def counted(bases: Mapping[str, Mapping[int, Base]]) -> str:
    """How many bases there are of each model, and whether these allow an interval."""
    few = ", too few for an interval" if max(map(len, bases.values()), default=0) < 2 else ""
    seeds = {tuple(found) for found in bases.values()}
    if len(seeds) == 1:
        (one,) = seeds
        return f"{span([len(one)], 'base')} a model ({said_seeds(one)}){few}"
    return "; ".join(f"{model}: {span([len(found)], 'base')} ({said_seeds(tuple(found))})" for model, found in bases.items())


def mean(values: Sequence[float]) -> float:
    """Of the values that are known; nan where none is."""
    known = [value for value in values if isfinite(value)]
    return sum(known) / len(known) if known else nan
