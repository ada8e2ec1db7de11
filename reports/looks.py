"""How each arm is drawn: the colour says which method it is, the dashes which of the arms of that method."""

from __future__ import annotations

from dataclasses import dataclass

from reports.leaderboard import is_control
from reports.load import Comparison

METHODS = ("base", "sft", "distill", "ppo", "dpo", "grpo", "best_of_n")
SPARE = 2  # colours for methods of other names
DASHES = ("solid", "dashed", "dash-dot", "long-dash", "dash-dot-dot")
DOTS = ("dotted", "sparse")  # of controls


@dataclass(frozen=True)
class Look:
    """The style sheet's names of a colour and of a dash pattern."""

    colour: str = "c0"
    dash: str = DASHES[0]

    @property
    def classes(self) -> str:
        return f"{self.colour} {self.dash}"


def looks(comparison: Comparison) -> dict[str, Look]:
    """A look for each arm: a method has the same colour in every report, a control is dotted, the first other arm solid."""
    methods = {run.label: run.method for run in reversed(comparison.runs)}
    controls = {run.label for run in comparison.runs if is_control(run)}
    others = list(dict.fromkeys(methods[label] for label in comparison.labels if methods[label] not in METHODS))
    drawn: dict[tuple[str, bool], int] = {}
    found: dict[str, Look] = {}
    for label in comparison.labels:
        method, control = methods[label], label in controls
        number = drawn[method, control] = drawn.get((method, control), -1) + 1
        colour = METHODS.index(method) if method in METHODS else len(METHODS) + others.index(method) % SPARE
        dashes = DOTS if control else DASHES
        found[label] = Look(f"c{colour}", dashes[number % len(dashes)])
    return found
