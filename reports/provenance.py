"""What was run and where: the arms' settings, what differs between them, and the environment."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from reports.load import Comparison, Run

NOT_SETTINGS = ("label", "seed", "task", "model", "start")
CHOICES = ("samples from", "reward", "baseline", "advantage", "aggregation", "KL", "clip", "passes")


@dataclass(frozen=True)
class Card:
    """One arm as it was configured; `choices` is how it learns, as its method says."""

    label: str
    method: str
    stages: tuple[str, ...]
    choices: Mapping[str, str]
    options: tuple[tuple[str, str], ...]
    runs: int


@dataclass(frozen=True)
class Difference:
    """A setting on which the arms differ; `values` in the order of the cards."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """The arms of one task and of one or more models on which they are the same."""

    task: str
    models: tuple[str, ...]
    cards: list[Card]
    shared: list[tuple[str, str]]
    different: list[Difference]

    @property
    def choices(self) -> list[str]:
        """What the methods say about how their arms learn."""
        return choices(self.cards)

    def like(self, other: Setup) -> bool:
        """Whether all is the same but for the base."""
        one, another = ([item for item in setup.shared if item[0] != "base"] for setup in (self, other))
        return (self.task, self.cards, one, self.different) == (other.task, other.cards, another, other.different)

    def along(self, other: Setup) -> Setup:
        """Both, with the bases of both."""
        bases = {key: value for key, value in other.shared if key == "base"}
        shared = [(key, f"{value}, {bases[key]}" if key in bases else value) for key, value in self.shared]
        return replace(self, models=self.models + other.models, shared=shared)


def written(value: object) -> str:
    """A setting on one line."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = written(value)
    return found


def _firsts(runs: Sequence[Run]) -> list[Run]:
    found: dict[str, Run] = {}
    for run in runs:
        if run.config:
            found.setdefault(run.label, run)
    return list(found.values())


def cards(runs: Sequence[Run]) -> list[Card]:
    """A card for each arm that has a config."""
    return [
        Card(
            run.label,
            run.method,
            run.stages,
            next((other.card for other in runs if other.label == run.label and other.card), {}),
            tuple(sorted(flat(run.config.get("options") or {}).items())),
            sum(other.label == run.label for other in runs),
        )
        for run in _firsts(runs)
    ]


def choices(cards: Sequence[Card]) -> list[str]:
    """What some card speaks of, in the order of `CHOICES`, anything else last."""
    named = dict.fromkeys(key for card in cards for key in card.choices)
    return sorted(named, key=lambda key: CHOICES.index(key) if key in CHOICES else len(CHOICES))


def settings(runs: Sequence[Run]) -> tuple[list[tuple[str, str]], list[Difference]]:
    """What all arms share, and what differs between them beside their options."""
    configs = [flat({k: v for k, v in run.config.items() if k not in NOT_SETTINGS}) for run in _firsts(runs)]
    shared: list[tuple[str, str]] = []
    different: list[Difference] = []
    for key in sorted({key for config in configs for key in config}):
        values = tuple(config.get(key, "–") for config in configs)
        if len(set(values)) == 1:
            shared.append((key, values[0]))
        else:
            different.append(Difference(key, values))
    return shared, different


def setups(comparison: Comparison) -> list[Setup]:
    """How the arms were set up, in every section; models that differ in their base alone are told of together."""
    found: list[Setup] = []
    for task, model in comparison.sections:
        runs = comparison.of(task, model)
        shared, different = settings(runs)
        one = Setup(task, (model,), cards(runs), shared, different)
        for number, other in enumerate(found):
            if other.like(one):
                found[number] = other.along(one)
                break
        else:
            found.append(one)
    return found


def environment(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Each recorded fact with the values it took and in how many runs; more than one value is worth a look."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        for key, value in flat({k: v for k, v in run.environment.items() if k != "argv"}).items():
            facts.setdefault(key, Counter())[value] += 1
    return [(key, sorted(values.items(), key=lambda item: (-item[1], item[0]))) for key, values in sorted(facts.items())]


def commands(comparison: Comparison) -> list[str]:
    """The commands that made these runs."""
    found: set[str] = set()
    for run in comparison.runs:
        argv = run.environment.get("argv")
        if isinstance(argv, list) and {"run", "sweep"} & set(argv):
            found.add(shlex.join([PurePath(str(argv[0])).name, *map(str, argv[1:])]))
    return sorted(found)


def redo(comparison: Comparison, run: Run) -> str:
    """The command that computes this run again, alone but for the arms it starts from; empty where it is not known.

    The same settings are the same run, so it does nothing while the run's directory says DONE.
    """
    argv = run.environment.get("argv")
    arguments = [str(value) for value in argv] if isinstance(argv, list) else []
    sweep = next((value for value in arguments if value.endswith(".toml") and "=" not in value), None)
    known = {other.id: other for other in comparison.runs}
    chain = _chain(known, run)
    if sweep is None or "run" not in arguments or not chain:
        return ""
    given = [value for value in arguments if "=" in value and not value.startswith(("-", "methods", "name="))]
    arms = ", ".join(f"{json.dumps(one.label)} = {_table(one, known)}" for one in chain)
    chosen = [
        f"methods={{ {arms} }}",
        f"seeds=[{run.seed}]",
        f"tasks=[{json.dumps(run.task)}]",
        f"models=[{json.dumps(run.model)}]",
    ]
    return shlex.join(["bakeoff", "run", sweep, *given, *chosen, "name=again"])


def _chain(known: Mapping[str, Run], run: Run) -> list[Run]:
    """The arms that it starts from, first to last, and itself; empty where one has no config."""
    found: list[Run] = []
    while run.config and run not in found:
        found.append(run)
        start = str(run.config.get("start") or "")
        if not start:
            return found[::-1]
        if start not in known:
            break
        run = known[start]
    return []


def _table(run: Run, known: Mapping[str, Run]) -> str:
    """An arm as an inline table of TOML, all its options written out."""
    start = str(run.config.get("start") or "")
    said = {"method": run.method, **(run.config.get("options") or {}), **({"start": known[start].label} if start else {})}
    written = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in said.items() if value is not None)
    return f"{{ {written} }}"
