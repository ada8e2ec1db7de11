"""What to search. A TOML file becomes a Search: for each method the options to draw, and how its trials are run and judged.

It reads like a comparison. `search` in a method's table names options whose ranges the method declares, or gives ranges itself
(harness/space.py); an option that has a value in the table too has it as its default, which the tuned one is held against. Every
method has the same number of trials, under the same budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness import plugins, space
from harness.comparison import STRICT, Comparison, Engine, Evaluation, Positive, RunConfig, located, options, read_table
from harness.errors import BakeoffError, meant
from harness.meter import Budget
from harness.parse import validated
from harness.space import Range, Value

Objective = Literal["pass@1", "reward", "kl"]
DIRECTIONS: Mapping[Objective, Literal["maximize", "minimize"]] = {"pass@1": "maximize", "reward": "maximize", "kl": "minimize"}

Seeds = Annotated[tuple[int, ...], Field(min_length=2)]


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Caps; a trial beyond one is never called the best."""

    __pydantic_config__ = STRICT

    kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # nats a token, eval/kl
    truncated: Annotated[float, Field(ge=0, le=1)] | None = None  # share of completions that are cut off

    def caps(self) -> dict[str, float]:
        return {name: cap for name, cap in asdict(self).items() if cap is not None}


@dataclass(frozen=True, kw_only=True)
class Search:
    __pydantic_config__ = STRICT

    name: str
    question: str
    methods: dict[str, dict[str, Any]]  # label -> {method, search, options…}
    tasks: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    seeds: Seeds  # of every trial
    confirm_seeds: Seeds  # of the best trials, again
    report_seeds: Seeds  # of default and tuned, on test
    budget: Budget  # of every run
    evaluation: Evaluation = field(default_factory=Evaluation)  # of default and tuned; trials see validation problems alone
    threads: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: Positive = 32
    engine: Engine = "own"
    trials: Positive = 40  # of each method
    sampler: Literal["tpe", "gp", "random", "qmc", "nsga2", "grid"] = "tpe"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=2)] = (
        "pass@1",
    )  # means over seeds, on validation
    constraints: Constraints = field(default_factory=Constraints)
    pruner: Literal["none", "wilcoxon", "median"] = "none"  # asked after each seed, whether the trial goes on

    @staticmethod
    def load(path: Path, overrides: Sequence[str] = ()) -> Search:
        """Read and check a search file. Raises BakeoffError naming the file and the field for whatever cannot be searched."""
        search = validated(Search, read_table(path, overrides), str(path))
        with located(str(path)):
            search.check()
        return search

    def check(self) -> None:
        """Refuse what could not be searched, before anything is written."""
        for label, table in self.methods.items():
            if "start" in table:
                raise BakeoffError(f"methods.{label}.start: a search starts from the base")
        fixed = {label: {k: v for k, v in table.items() if k != "search"} for label, table in self.methods.items()}
        seeds = (*self.seeds, *self.confirm_seeds, *self.report_seeds)
        self.comparison(self.name, fixed, seeds, self.evaluation).check("of default and tuned")
        if len(set(self.objectives)) < len(self.objectives):
            raise BakeoffError(f"objectives: {self.objectives[0]!r} is there twice")
        if self.objectives[0] == "kl":
            raise BakeoffError("objectives: kl alone is least where nothing is learnt; put reward or pass@1 first")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise BakeoffError('pruner: two objectives cannot be pruned; take pruner = "none" or one objective')
        for label, ranges in self.ranges.items():
            with located(f"methods.{label}.search"):
                if self.sampler == "grid":
                    cells(grid(ranges, self.trials), self.trials)

    @cached_property
    def ranges(self) -> dict[str, dict[str, Range]]:
        """By label and option."""
        return {label: self._ranges(label, table) for label, table in self.methods.items()}

    def _ranges(self, label: str, table: dict[str, Any]) -> dict[str, Range]:
        method = plugins.find("methods", table["method"])
        known, asked = space.declared(method), table.get("search")
        if not isinstance(asked, (list, dict)) or not asked:
            raise BakeoffError(f'methods.{label}: needs search = ["lr", …], of {", ".join(known)}, or a table of ranges')
        found = dict[str, Range]()
        for name in asked:
            with located(f"methods.{label}.search"):
                if name not in (names := [f.name for f in fields(method) if f.init]):
                    raise BakeoffError(f"{table['method']} has no option {name!r}{meant(str(name), names)}")
                if name in method.models:
                    raise BakeoffError(f"{name!r} names a model, which is no option to search; make it an arm of a comparison")
                if name in found:
                    raise BakeoffError(f"{name!r} is there twice")
                if isinstance(asked, list) and name not in known:
                    raise BakeoffError(
                        f"{table['method']} declares no range for {name!r}; write search.{name} = {{ uniform = [0.0, 1.0] }}, "
                        f"of {', '.join(space.KINDS)}"
                    )
            with located(f"methods.{label}.search.{name}"):
                found[name] = known[name] if isinstance(asked, list) else space.read(asked[name])
            for value in found[name].probes():
                validated(method, {**self.fixed(label), name: value}, f"methods.{label}.search")
        return found

    def fixed(self, label: str) -> dict[str, Any]:
        """What the file says of a method's options, ranges aside."""
        return {k: v for k, v in options(self.methods[label]).items() if k != "search"}

    def comparison(
        self, name: str, methods: dict[str, dict[str, Any]], seeds: tuple[int, ...], evaluation: Evaluation
    ) -> Comparison:
        """Arms under this search's conditions."""
        return Comparison(
            name=name,
            question=self.question,
            methods=methods,
            tasks=self.tasks,
            models=self.models,
            seeds=seeds,
            budget=self.budget,
            evaluation=evaluation,
            threads=self.threads,
            device=self.device,
            dtype=self.dtype,
            micro_batch=self.micro_batch,
            engine=self.engine,
        )

    def defaults(self, root: Path) -> dict[str, RunConfig]:
        """A run of each method with its default options, on validation: what its trials differ from in options and seed."""
        blind = replace(self.evaluation, test_problems=0, ood_problems=0, other_tasks=())
        methods = {label: {"method": self.methods[label]["method"], **self.fixed(label)} for label in self.methods}
        return {run.label: run for run in self.comparison(self.name, methods, self.seeds[:1], blind).runs(root)}

    def identity(self, default: RunConfig) -> dict[str, Any]:
        """What makes trials of one method comparable: two searches of one name must agree on it."""
        identity = default.identity()
        identity["search"] = {name: space.written(r) for name, r in self.ranges[default.label].items()}
        for name in identity["search"]:
            del identity["options"][name]
        identity |= {"seeds": self.seeds, "objectives": self.objectives, "constraints": self.constraints.caps()}
        identity["pruner"] = self.pruner
        identity["trials of the grid"] = self.trials if self.sampler == "grid" else None
        del identity["seed"]
        return identity


def tried(default: RunConfig, drawn: dict[str, Value], seeds: Sequence[int]) -> list[RunConfig]:
    """The runs of a trial."""
    method = plugins.find("methods", default.method)
    checked = validated(method, {**default.options, **drawn}, f"methods.{default.label}")
    return [
        replace(default, seed=seed, options={f.name: getattr(checked, f.name) for f in fields(method) if f.init})
        for seed in seeds
    ]


def grid(ranges: dict[str, Range], trials: int) -> dict[str, list[Value]]:
    """The values of each option on a grid of about as many cells as there are trials."""
    n = next(n for n in range(2, trials + 2) if n ** len(ranges) >= trials)
    return {r.drawn_as(name): r.grid(n) for name, r in ranges.items()}


def cells(axes: dict[str, list[Value]], trials: int) -> int:
    """How many a grid has. Raises BakeoffError where they are fewer than the trials."""
    n = 1
    for values in axes.values():
        n *= len(values)
    if n < trials:
        raise BakeoffError(f"a grid over {', '.join(axes)} has {n} cells and {trials} trials are asked; ask for at most {n}")
    return n
