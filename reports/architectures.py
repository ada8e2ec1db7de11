"""What tells the models of a comparison apart: what they cost, what they know, and what every method makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from reports.bases import Base, counted, left, mean
from reports.curves import Panel
from reports.drafts import Draft, drafts
from reports.heat import Experts, experts
from reports.leaderboard import Board
from reports.load import Comparison
from reports.looks import Look
from reports.numbers import more_nats, nats, span, times
from reports.routing import masked, violations
from reports.stats import Interval, paired, t_interval

COLOURS = ("c7", "c8", "c4", "c6", "c2", "c3", "c5", "c1")  # first those that no method of ours has
DASHES = ("solid", "dashed", "dash-dot")
ALIKE = 0.02  # how far apart quantities may be that count as held equal
HELD = {
    "active": "active parameters",
    "flops_per_token": "FLOPs per token",
    "tokens": "pretraining tokens",
    "flops": "pretraining FLOPs",
}
FACTS = (
    "parameters",
    "active",
    "flops_per_token",
    "cache_elements",
    "cache_bytes",
    "tokens",
    "flops",
    "max_violation",
    "collapsed",
)


@dataclass(frozen=True)
class Row:
    """A model, as its bases are on average."""

    model: str
    seeds: tuple[int, ...]
    facts: Mapping[str, float]
    experts: int  # routed ones, of all layers
    flops_ratio: float  # of pretraining, over the first model's
    loss: Interval
    delta: Interval  # of the loss, to the first model

    @property
    def routed(self) -> bool:
        return self.experts > 0


@dataclass(frozen=True)
class Reached:
    """Pass@1 of each model after each method, on one task."""

    task: str
    split: str
    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Interval, ...]], ...]


@dataclass(frozen=True)
class Architectures:
    lead: str
    rows: tuple[Row, ...]
    bases: str  # how many and of which seeds
    held: str
    reached: tuple[Reached, ...]
    experts: tuple[Experts, ...]
    panels: tuple[Panel, ...]
    drafts: tuple[Draft, ...]
    looks: Mapping[str, Look]
    notices: tuple[str, ...]

    @property
    def several(self) -> bool:
        return len(self.rows) > 1

    @property
    def known(self) -> bool:
        """Whether some base was pretrained here."""
        return any(row.loss.n for row in self.rows)

    @property
    def routed(self) -> bool:
        return any(row.routed for row in self.rows)


def _losses(bases: Mapping[int, Base]) -> dict[int, float]:
    return {seed: loss for seed, base in bases.items() if isfinite(loss := base.fact("held_out"))}


def _row(model: str, bases: Mapping[int, Base], first: Mapping[int, Base]) -> Row:
    facts = {name: mean([base.fact(name) for base in bases.values()]) for name in FACTS}
    alike = {s: b for s, b in bases.items() if s in first and set(b.families) == set(first[s].families)}
    delta = t_interval([]) if bases is first else paired(_losses(alike), _losses(first))
    flops = mean([base.fact("flops") for base in first.values()])
    sizes = [load.size for base in bases.values() for load in base.load.values()]
    ratio = facts["flops"] / flops if flops else nan
    return Row(model, tuple(bases), facts, max(sizes, default=0), ratio, t_interval(_losses(bases).values()), delta)


def held(rows: Sequence[Row]) -> str:
    """Which quantities are the same for all models, and how far apart the others are."""
    ratios: dict[str, float] = {}
    for name, said in HELD.items():
        values = [row.facts[name] for row in rows]
        if all(isfinite(value) and value > 0 for value in values):
            ratios[said] = max(values) / min(values)
    equal = [said for said, ratio in ratios.items() if ratio <= 1 + ALIKE]
    apart = [f"{said} (up to {times(ratio)})" for said, ratio in ratios.items() if ratio > 1 + ALIKE]
    told = [f"Held equal to within {100 * ALIKE:.0f}%: {', '.join(equal)}."] if equal else []
    return " ".join([*told, *([f"Not equal: {', '.join(apart)}."] if apart else [])])


def lead(rows: Sequence[Row]) -> str:
    """Which base predicts what it has not seen best, and whether the first is told from it."""
    known = [row for row in rows if isfinite(row.loss.mean)]
    if len(known) < 2:
        return ""
    best = min(known, key=lambda row: row.loss.mean)
    said = f"{best.model} has the lowest held-out loss, {nats(best.loss.mean)} nats"
    if best is rows[0]:
        told = [row.model for row in known[1:] if row.delta.excludes(0)]
        if all(row.delta.n < 2 for row in known[1:]):
            return f"{said}, with too few seeds in common to tell it from the others."
        named = f" ({', '.join(told)})" if told else ""
        return f"{said}, distinguishable from {len(told)} of the {len(known) - 1} others{named}."
    if best.delta.n < 2:
        return f"{said}, with too few seeds in common with {rows[0].model} to tell them apart."
    bounds = f"difference {more_nats(best.delta.mean)}, 95% CI {more_nats(best.delta.low)} to {more_nats(best.delta.high)}"
    apart = "below" if best.delta.excludes(0) else "not distinguishable from"
    return f"{said}, {apart} {rows[0].model}'s ({bounds}, {span([best.delta.n], 'seed')})."


def _reached(boards: Sequence[Board], labels: Sequence[str]) -> list[Reached]:
    found: list[Reached] = []
    for task in dict.fromkeys(board.task for board in boards):
        own = [board for board in boards if board.task == task]
        scores = {b.model: {row["arm"]: t_interval(row["scores"].values()) for row in b.frame.to_dict("records")} for b in own}
        arms = tuple(label for label in labels if any(label in cells for cells in scores.values()))
        rows = tuple((model, tuple(cells.get(arm, t_interval([])) for arm in arms)) for model, cells in scores.items())
        found.append(Reached(task, own[0].split, arms, rows))
    return found


def looks_of(models: Sequence[str]) -> dict[str, Look]:
    """A look for each model."""
    return {m: Look(COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]) for n, m in enumerate(models)}


def architectures(comparison: Comparison, boards: Sequence[Board]) -> Architectures | None:
    """All there is to show; None where one model is like another, or nothing tells."""
    found = left(comparison)
    maps = experts(found)
    tried = drafts(found)
    several = len(found.bases) > 1
    if not (several or maps or tried or found.notices):
        return None
    looks = looks_of(list(dict.fromkeys(model for _, model in comparison.sections)))
    first = next(iter(found.bases.values()), {})
    rows = tuple(_row(model, bases, first) for model, bases in found.bases.items())
    return Architectures(
        lead(rows),
        rows,
        counted(found.bases),
        held(rows) if several else "",
        tuple(_reached(boards, comparison.labels)) if several else (),
        tuple(maps),
        tuple(made for made in (violations(found.bases, looks), masked(found.bases, looks)) if made),
        tuple(tried),
        looks,
        found.notices,
    )
