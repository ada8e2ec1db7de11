"""What to run. A TOML file becomes a Comparison, a Comparison expands into RunConfigs, and nothing else configures anything."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from harness import models, plugins
from harness.errors import MISSING, BakeoffError, meant
from harness.meter import Budget
from harness.method import Method
from harness.models import Recipe
from harness.parse import validated
from harness.task import Task

STRICT = ConfigDict(extra="forbid")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

Engine = Literal["own", "vllm"]
Size = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How every arm is measured: the same held-out problems and decoding seeds, temperature 1, the whole distribution."""

    __pydantic_config__ = STRICT

    points: Positive = 5  # evaluations on validation, evenly over the budget, beside the one at the start
    validation_problems: Positive = 64
    validation_samples: Positive = 2
    test_problems: Size = 500  # 0 leaves the test split, ood and the other tasks alone: for tuning
    test_samples: Positive = 4
    ood_problems: Size = 200
    ood_samples: Positive = 1
    other_tasks: tuple[str, ...] = ()  # measured at the end, for forgetting
    other_problems: Positive = 100


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One method, one task, one model, one seed, one budget, and everything else that changes a number."""

    __pydantic_config__ = STRICT

    label: str  # the arm's name
    method: str
    task: str
    model: str
    base: str  # the identity of the model's weights
    start: str = ""  # the run whose final policy this one starts from; empty: the base
    others: dict[str, str] = field(default_factory=dict[str, str])  # the identities of the other models that take part
    problems: str  # the identity of the task's problems
    seed: int
    budget: Budget
    evaluation: Evaluation
    options: dict[str, Any] = field(default_factory=dict[str, Any])  # all of the method's fields, defaults included
    threads: int = 1
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int = 32
    engine: Engine = "own"

    @cached_property
    def id(self) -> str:
        """arithmetic-grpo-dense-s0-3f9a1c2e: the same configuration is always the same directory."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        model = self.model if NAME.fullmatch(self.model) else self.base.rsplit("-", 1)[0]
        return re.sub(r"[^a-z0-9._-]+", "-", f"{self.task}-{self.label}-{model}-s{self.seed}-{digest}".lower())

    def identity(self) -> dict[str, Any]:
        """What makes it this run: every field, but the one that came later than runs did only where it is not the default."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("engine", "own")}

    def build(self) -> Method[Any]:
        """The method with its options."""
        cls = plugins.find("methods", self.method)
        return validated(cls, self.options, f"methods.{self.label}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that differ in nothing but the method, or in nothing but the base."""

    __pydantic_config__ = STRICT

    name: str
    question: str  # one sentence: what the comparison answers
    methods: dict[str, dict[str, Any]]  # label -> {method, options…}, and `start`: the label of the arm to start from
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    bases: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])  # recipes of its own, for `models`
    base_per_seed: bool = False  # every seed has a base of its own, for comparing bases
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    budget: Budget
    evaluation: Evaluation = field(default_factory=Evaluation)
    threads: Positive = 1  # of each run; part of its identity, because it changes the last bits
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast over float32 weights
    micro_batch: Positive = 32  # sequences that pass through the model at once, those of like length together
    engine: Engine = "own"  # that samples rollouts (harness/vllm_engine.py); evaluation is by our own
    claims: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])  # reports/claims.py

    def runs(self, root: Path) -> list[RunConfig]:
        """The run matrix; every arm comes after the one that it starts from."""
        device = resolve_device(self.device)
        identity = {
            (model, seed): recipe.id if (recipe := self.recipe(model, seed)) else models.identity(model, root)
            for model, seed in itertools.product(self.models, self.seeds)
        }
        problems = {task: models.fingerprint(checked_task(task)) for task in self.tasks}
        made = dict[tuple[str, str, str, int], RunConfig]()
        for label in self.in_order():
            table = self.methods[label]
            method = validated(plugins.find("methods", table["method"]), options(table), f"methods.{label}")
            others = {name: self.other(label, getattr(method, name), root) for name in method.models}
            for task, model, seed in itertools.product(self.tasks, self.models, self.seeds):
                made[label, task, model, seed] = RunConfig(
                    label=label,
                    method=table["method"],
                    task=task,
                    model=model,
                    base=identity[model, seed],
                    start=made[table["start"], task, model, seed].id if "start" in table else "",
                    others=others,
                    problems=problems[task],
                    seed=seed,
                    budget=self.budget,
                    evaluation=replace(self.evaluation, other_tasks=tuple(t for t in self.evaluation.other_tasks if t != task)),
                    options={f.name: getattr(method, f.name) for f in fields(method) if f.init},
                    threads=self.threads,
                    device=device,
                    dtype=self.dtype,
                    micro_batch=self.micro_batch,
                    engine=self.engine,
                )
        return list(made.values())

    def recipe(self, model: str, seed: int) -> Recipe | None:
        """How a base is pretrained; None for one that is a folder."""
        recipe = {**models.presets(), **self.recipes}.get(model)
        return replace(recipe, seed=seed) if recipe and self.base_per_seed else recipe

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """Of its own bases."""
        return models.recipes(self.bases, models.presets(), "bases")

    def in_order(self) -> list[str]:
        """The arms as they are written, but each after the one that it starts from."""
        ordered = list[str]()
        waiting = list(self.methods)
        while waiting:
            ready = next((label for label in waiting if self.methods[label].get("start") not in waiting), None)
            if ready is None:
                raise BakeoffError(f"methods.{waiting[0]}.start: a circle through {', '.join(waiting)}")
            waiting.remove(ready)
            ordered.append(ready)
        return ordered

    def other(self, label: str, name: str, root: Path) -> str:
        """The identity of a model beside the base, which must read the same tokens."""
        with located(f"methods.{label}"):
            for model in self.models:
                pretrained = self.recipe(model, 0) is not None
                if models.vocabulary(name, root) != models.vocabulary(None if pretrained else model, root):
                    raise BakeoffError(f"{name} and {model} have different tokenizers; take a teacher of the same family")
            return models.identity(name, root)

    @staticmethod
    def load(path: Path, overrides: Sequence[str] = ()) -> Comparison:
        """Read and check a comparison file; `overrides` are KEY=VALUE with dots in the key and TOML in the value.

        Raises BakeoffError naming the file and the field for whatever cannot be run.
        """
        comparison = validated(Comparison, read_table(path, overrides), str(path))
        comparison.check(str(path))
        return comparison

    def check(self, where: str) -> None:
        """Refuse what could not run, before anything is written."""
        if not self.methods:
            raise BakeoffError(f"{where}: methods: needs at least one table [methods.NAME]")
        for label, table in self.methods.items():
            if not NAME.fullmatch(label):
                raise BakeoffError(f"{where}: methods.{label}: a name is lower case letters, digits, . _ and -")
            if "method" not in table:
                raise BakeoffError(f"{where}: methods.{label}: needs method = one of {', '.join(plugins.names('methods'))}")
            with located(f"{where}: methods.{label}.method"):
                method = plugins.find("methods", str(table["method"]))
                if not (isinstance(method, type) and issubclass(method, Method)):
                    raise BakeoffError(f"{table['method']!r} is not a Method")
            validated(method, options(table), f"{where}: methods.{label}")
            if not isinstance(start := table.get("start", label), str) or start not in self.methods:
                raise BakeoffError(f"{where}: methods.{label}.start: no arm named {start!r}{meant(str(start), self.methods)}")
        with located(where):
            self.in_order()
        for name in self.bases:
            if not NAME.fullmatch(name):
                raise BakeoffError(f"{where}: bases.{name}: a name is lower case letters, digits, . _ and -")
        with located(where):
            if taken := sorted(self.recipes.keys() & models.presets().keys()):
                raise BakeoffError(f"bases.{taken[0]}: there is a preset of that name; take another")
        for key in ("tasks", "models", "seeds"):
            if twice := sorted(value for value, n in Counter(getattr(self, key)).items() if n > 1):
                raise BakeoffError(f"{where}: {key}: {twice[0]!r} is there twice")
        for name in (*self.tasks, *self.evaluation.other_tasks):
            with located(f"{where}: tasks"):
                checked_task(name)


def read_table(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A TOML file with its overrides and its name, which is the file's where it has none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [str(p) for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        raise BakeoffError(f"{path}: no such file{meant(str(path), near)}", MISSING) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BakeoffError(f"{path}: cannot be read: {error}", MISSING) from None
    except tomllib.TOMLDecodeError as error:
        raise BakeoffError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        apply(table, override)
    if not NAME.fullmatch(str(table.setdefault("name", path.stem))):
        raise BakeoffError(f"{path}: name: {table['name']!r} must be lower case letters, digits, . _ and -")
    return table


def options(table: Mapping[str, Any]) -> dict[str, Any]:
    """What of an arm's table is the method's own."""
    return {k: v for k, v in table.items() if k not in ("method", "start")}


def checked_task(name: str) -> Task:
    """The task of this name; BakeoffError if a split that every run needs is empty."""
    task = plugins.find("tasks", name)
    if not isinstance(task, Task):
        raise BakeoffError(f"{name!r} is not a Task")
    for split in ("train", "validation", "test"):
        if len(task.problems(split)) == 0:
            raise BakeoffError(f"task {name!r} has no problems in its {split} split")
    return task


class located:
    """Put where in front of an error's message."""

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, BakeoffError):
            raise BakeoffError(f"{self.where}: {error}", error.code) from None


def apply(table: dict[str, Any], override: str) -> None:
    """Set one KEY=VALUE in a comparison's table."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise BakeoffError(f"{override!r}: an override is KEY=VALUE, for example budget.flops=1e12 or seeds=[0,1]")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    at: Any = table
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise BakeoffError(f"{override!r}: {part} is a value, not a table")
    at[last] = value


def resolve_device(device: str) -> str:
    """`auto` is what the hardware is."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BakeoffError('device: cuda was asked for, but torch sees no CUDA device; use device = "cpu"', MISSING)
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
