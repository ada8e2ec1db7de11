"""Run directories in, frozen values out. Reads files only; knows no model, method or task."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.errors import BakeoffError

Status = Literal["done", "failed", "unfinished", "missing"]
Record = Mapping[str, Any]

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EVALUATION = re.compile(r"(?P<step>\d+)-(?P<split>.+)\.jsonl")
IDENTITY = re.compile(r"(?P<arm>.+)-s(?P<seed>\d+)-[^-]+")  # task-method-model, then seed and hash
HEADLINE = "test/pass@1"
NUMBER = (int, float)


class ReportError(BakeoffError, ValueError):
    """A folder that cannot be read: names the file and what is wrong with it."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path}: {problem}")
        self.problem = problem


@dataclass(frozen=True)
class Run:
    """One run as its directory tells it. A run that is missing or broken off is a value too, never an omission."""

    id: str
    directory: Path
    status: Status
    reason: str = ""
    label: str = "?"
    method: str = "?"
    task: str = "?"
    model: str = "?"
    seed: int | None = None
    config: Record = field(default_factory=dict[str, Any])
    environment: Record = field(default_factory=dict[str, Any])
    card: Mapping[str, str] = field(default_factory=dict[str, str])
    stages: tuple[str, ...] = ()  # labels of the arms that came before it, whose policy it starts from, in their order
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    notes: tuple[str, ...] = ()  # what was left out of its metrics, and why

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def split(self) -> str:
        """Where it is scored: `test`, or `validation` for a run that was told to leave the test split alone."""
        return "validation" if self.config.get("evaluation", {}).get("test_problems") == 0 else "test"

    def final(self, name: str) -> float:
        """The last value that was logged under `name`, nan where there is none; of validation where that is all there is."""
        if self.split == "validation":
            name = name.replace("test/", "eval/")
        if name not in self.metrics:
            return float("nan")
        values = self.metrics[name].to_numpy(float)
        known = values[~np.isnan(values)]
        return float(known[-1]) if len(known) else float("nan")

    def evaluation(self, split: str) -> list[dict[str, Any]]:
        """The rows of the last evaluation on `split`, one a completion."""
        found: list[tuple[int, Path]] = []
        for path in (self.directory / "evals").glob("*.jsonl"):
            match = EVALUATION.fullmatch(path.name)
            if match and match["split"] == split:
                found.append((int(match["step"]), path))
        return read_jsonl(max(found)[1]) if found else []

    def sampled(self, split: str) -> dict[str, list[dict[str, Any]]]:
        """Of the last evaluation on `split`, the rows of each problem that are not its greedy one."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.evaluation(split):
            if not row.get("greedy"):
                found.setdefault(str(row.get("problem")), []).append(row)
        return found


def by_seed(runs: Iterable[Run], name: str) -> dict[int, float]:
    """The last value under that name of each finished run that has one."""
    values = {run.seed: run.final(name) for run in runs if run.done and run.seed is not None}
    return {seed: value for seed, value in sorted(values.items()) if isfinite(value)}


@dataclass(frozen=True)
class Comparison:
    """What was asked, and the runs in the order of the question."""

    name: str
    asked: Record
    runs: tuple[Run, ...]
    registered: tuple[Record, ...] = ()  # what was written down of its claims, and when (harness/register.py)

    @property
    def question(self) -> str:
        return str(self.asked.get("question", ""))

    @property
    def labels(self) -> tuple[str, ...]:
        """Arms in the order of the comparison."""
        return tuple(dict.fromkeys(run.label for run in self.runs if run.label != "?"))

    @property
    def sections(self) -> tuple[tuple[str, str], ...]:
        """Each (task, model) that was asked for, in order."""
        return tuple(dict.fromkeys((run.task, run.model) for run in self.runs if run.task != "?"))

    def of(self, task: str, model: str) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if (run.task, run.model) == (task, model))

    def count(self, status: Status) -> int:
        return sum(run.status == status for run in self.runs)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line. A torn last line is what a killed writer leaves and is ignored; any other is an error."""
    lines = path.read_bytes().split(b"\n")
    whole = [line for line in lines if line.strip()]
    try:
        rows = json.loads(b"[" + b",".join(whole) + b"]")  # faster than line by line
    except ValueError:
        return _read_lines(path, lines)
    return rows if len(rows) == len(whole) and all(isinstance(row, dict) for row in rows) else _read_lines(path, lines)


def _read_lines(path: Path, lines: list[bytes]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ReportError(path, f"line {number} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ReportError(path, f"line {number} is not a JSON object")
        rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """One object. Raises ReportError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ReportError(path, f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ReportError(path, "not a JSON object")
    return value


def _read_metrics(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One row a step: what a resumed run logged twice counts once, and its last word holds. Also what was left out."""
    steps: dict[int, dict[str, float]] = {}
    broken = Counter[str]()
    for number, row in enumerate(read_jsonl(path) if path.exists() else [], start=1):
        step = row.get("step")
        if not isinstance(step, int):
            raise ReportError(path, f"record {number} has no whole number under `step`")
        said = {key: value for key, value in row.items() if isinstance(value, NUMBER) and isfinite(value)}
        if len(said) < len(row):
            broken.update(key for key, value in row.items() if isinstance(value, NUMBER) and key not in said)
        steps.setdefault(step, {}).update(said)
    notes = tuple(f"`{key}` is NaN or infinite on {n} line{'s' if n != 1 else ''}, left out" for key, n in sorted(broken.items()))
    return pd.DataFrame([steps[step] for step in sorted(steps)]), notes


def _stages(root: Path, config: Record) -> tuple[str, ...]:
    """The labels along the chain of `start`; of a run that cannot be looked up, its id."""
    found: dict[str, str] = {}
    while (start := str(config.get("start") or "")) and start not in found:
        path = root / "runs" / start / "config.json"
        config = read_json(path) if SAFE_NAME.fullmatch(start) and path.exists() else {}
        found[start] = str(config.get("label", start))
    return tuple(reversed(found.values()))


def load_run(root: Path, identity: str) -> Run:
    """One run, also where it is missing or broken off. Raises ReportError for files that cannot be read."""
    directory = root / "runs" / identity
    path = directory / "config.json"
    if not path.exists():
        reason = "no config.json" if directory.exists() else "no run directory: not started yet, or deleted"
        return Run(identity, directory, "missing", reason)
    config = read_json(path)
    for key in ("label", "method", "task", "model", "seed"):
        if key not in config:
            raise ReportError(path, f"no `{key}`")
    environment, card = directory / "environment.json", directory / "card.json"
    run = Run(
        identity,
        directory,
        "unfinished",
        "neither DONE nor FAILED",
        label=str(config["label"]),
        method=str(config["method"]),
        task=str(config["task"]),
        model=str(config["model"]),
        seed=int(config["seed"]),
        config=config,
        environment=read_json(environment) if environment.exists() else {},
        card={key: str(value) for key, value in read_json(card).items()} if card.exists() else {},
        stages=_stages(root, config),
    )
    try:
        metrics, notes = _read_metrics(directory / "metrics.jsonl")
    except ReportError as error:
        return replace(run, status="failed", reason=f"metrics.jsonl cannot be read: {error.problem}")
    run = replace(run, metrics=metrics, notes=notes)
    if (directory / "DONE").exists():
        if pd.notna(run.final(HEADLINE)):
            return replace(run, status="done", reason="")
        return replace(run, reason=f"DONE, but metrics.jsonl holds no {HEADLINE}")
    if (directory / "FAILED").exists():
        reason = (directory / "FAILED").read_text(encoding="utf-8", errors="replace").strip()
        return replace(run, status="failed", reason=reason or "FAILED is empty")
    return run


def _placed(runs: list[Run]) -> tuple[Run, ...]:
    """Missing runs attributed to the arm whose name they carry; where several do, to a doubtful one of their own."""
    known: dict[str, set[tuple[str, str, str, str]]] = {}
    for run in runs:
        match = IDENTITY.fullmatch(run.id)
        if run.config and match:
            known.setdefault(match["arm"], set()).add((run.label, run.method, run.task, run.model))
    sections = {(run.task, run.model) for run in runs if run.config}
    labels = {run.label for run in runs if run.config}
    placed: list[Run] = []
    for run in runs:
        match = IDENTITY.fullmatch(run.id)
        if run.status == "missing" and match:
            arms = known.get(match["arm"], set())
            if len(arms) != 1:
                arms = _guessed(match["arm"], sections, labels)
            for label, method, task, model in arms:
                run = replace(run, label=label, method=method, task=task, model=model, seed=int(match["seed"]))
        placed.append(run)
    return tuple(placed)


def _guessed(arm: str, sections: set[tuple[str, str]], labels: set[str]) -> set[tuple[str, str, str, str]]:
    for task, model in sorted(sections):
        if arm.startswith(f"{task}-") and arm.endswith(f"-{model}") and len(arm) > len(task) + len(model) + 2:
            method = arm[len(task) + 1 : -len(model) - 1]
            return {(f"{method} (?)" if method in labels else method, method, task, model)}
    return set()


def load(root: Path | str, name: str) -> Comparison:
    """The comparison `name` under `root`, with every run that it lists."""
    root = Path(root)
    folder = root / "comparisons" / name
    if not SAFE_NAME.fullmatch(name):
        raise ReportError(folder, "not a name of a comparison (letters, digits, `.`, `_` and `-`)")
    if not folder.is_dir():
        raise ReportError(folder, "no such comparison")
    path = folder / "comparison.toml"
    if not path.exists():
        raise ReportError(path, "missing")
    try:
        asked = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReportError(path, f"not TOML ({error})") from None
    listed = folder / "runs.txt"
    if not listed.exists():
        raise ReportError(listed, "missing")
    identities = list(dict.fromkeys(listed.read_text(encoding="utf-8").split()))
    if not identities:
        raise ReportError(listed, "lists no run")
    for identity in identities:
        if not SAFE_NAME.fullmatch(identity):
            raise ReportError(listed, f"not a run id: {identity!r}")
    written = folder / "claims.jsonl"
    registered = tuple(read_jsonl(written)) if written.exists() else ()
    return Comparison(name, asked, _placed([load_run(root, identity) for identity in identities]), registered)
