"""Whom the routers ask: maps of layer × expert, before and after post-training and for each family of documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Literal

import numpy as np

from reports.bases import Base, Left, Shift
from reports.numbers import count, said_seeds, si, span, tick

COLLAPSED = 0.1  # of the mean load: an expert below it is hardly ever asked
FULL = 4  # times the mean load, or a part of it, at which the colour is full


LEGEND = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Cell:
    """One expert: stronger the further its load is from 1, in powers of 2."""

    x: int
    y: int
    kind: Literal["more-load", "less-load", "less-load gone"]
    strength: str
    text: str


@dataclass(frozen=True)
class Map:
    title: str
    load: np.ndarray  # [L, E], mean over seeds
    violation: float  # global MaxVio, mean over seeds
    collapsed: float  # experts, mean over seeds
    ordered: bool = False  # by load, so that a column is a place and no expert

    @property
    def layers(self) -> int:
        return self.load.shape[0]

    @property
    def experts(self) -> int:
        return self.load.shape[1]

    @property
    def rows(self) -> list[list[str]]:
        return [[f"{x:.2f}" for x in row] for row in self.load.tolist()]

    @property
    def cells(self) -> list[Cell]:
        """The framed ones last, so that no neighbour covers a frame."""
        what = "place" if self.ordered else "expert"
        found = [_cell(x, y, load, what) for y, row in enumerate(self.load.tolist()) for x, load in enumerate(row)]
        return sorted(found, key=lambda cell: cell.kind == "less-load gone")

    @property
    def note(self) -> str:
        return f"MaxVio {si(self.violation)}, {count(self.collapsed)} collapsed"


@dataclass(frozen=True)
class Pair:
    """An arm's maps before and after post-training."""

    task: str
    arm: str
    maps: tuple[Map, Map]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Experts:
    """The maps of one model."""

    model: str
    families: tuple[Map, ...]
    bases: tuple[int, ...]  # seeds
    pairs: tuple[Pair, ...]
    ordered: bool  # whether experts stand in the order of their load, as those of several bases must to be averaged

    @property
    def caption(self) -> str:
        who = (
            "experts, those of each layer in the order of their load on held-out documents, since the experts of several bases "
            "have no other in common"
            if self.ordered
            else "experts"
        )
        families = f" By family: mean over {span([len(self.bases)], 'base')} ({said_seeds(self.bases)})." if self.families else ""
        counts = [len(pair.seeds) for pair in self.pairs]
        pairs = (
            f" By method: mean over {span(counts, 'finished seed')}, on the run's own validation completions." if counts else ""
        )
        return (
            f"Load over the mean of the layer; no interval. Rows: layers, the first on top; columns: {who}. The colour is full "
            f"at {FULL} times the mean and at 1/{FULL} of it; a frame marks an expert under a tenth.{families}{pairs}"
        )

    @property
    def tasks(self) -> int:
        return len({pair.task for pair in self.pairs})

    @property
    def table(self) -> list[tuple[str, list[list[str]]]]:
        """Every value of every map: which map, and a row a layer."""
        named = [(f"held-out {one.title}", one) for one in self.families]
        named += [
            (f"{pair.arm}, {one.title}" + (f", {pair.task}" if self.tasks > 1 else ""), one)
            for pair in self.pairs
            for one in pair.maps
        ]
        return [(name, one.rows) for name, one in named]

    @property
    def most(self) -> int:
        return max((len(row) for _, rows in self.table for row in rows), default=0)


def _cell(x: int, y: int, load: float, what: str = "expert") -> Cell:
    strength = min(1.0, abs(log2(load)) / log2(FULL)) if load > 0 else 1.0
    kind = "less-load gone" if load < COLLAPSED else "less-load" if load < 1 else "more-load"
    return Cell(x, y, kind, f"{strength:.2f}".rstrip("0").rstrip("."), f"layer {y + 1}, {what} {x + 1}: {load:.2f}")


def legend() -> list[tuple[str, Cell]]:
    """A cell for each of some loads, and the load as it is written."""
    return [(tick(load), _cell(0, 0, load)) for load in LEGEND]


def _order(load: np.ndarray) -> np.ndarray:
    """[L, E] the experts of each layer, the one that is asked most first."""
    return np.argsort(-load, axis=1, kind="stable")


def _map(title: str, loads: Iterable[np.ndarray], orders: Sequence[np.ndarray | None]) -> Map:
    found = list(loads)
    placed = [x if order is None else np.take_along_axis(x, order, 1) for x, order in zip(found, orders, strict=True)]
    violations, gone = [float(x.max()) - 1 for x in found], [int((x < COLLAPSED).sum()) for x in found]
    return Map(title, np.mean(placed, axis=0), sum(violations) / len(found), sum(gone) / len(found), orders[0] is not None)


def _families(bases: Mapping[int, Base], ordered: bool) -> tuple[Map, ...]:
    """A map for each family that all bases were asked about, where their layers and experts are as many."""
    shapes = {load.shape for base in bases.values() for load in base.load.values()}
    if len(shapes) != 1:
        return ()
    shared = [name for name in next(iter(bases.values())).load if all(name in base.load for base in bases.values())]
    orders = [_usual(base) if ordered else None for base in bases.values()]
    return tuple(_map(name, [base.load[name] for base in bases.values()], orders) for name in shared)


def _usual(base: Base) -> np.ndarray:
    """The order of a base's experts, by their load over all families."""
    return _order(np.mean(list(base.load.values()), axis=0))


def _pair(task: str, arm: str, shifts: Sequence[Shift], orders: Mapping[str, np.ndarray], ordered: bool) -> Pair:
    shifts = [shift for shift in shifts if shift.before.shape == shifts[0].before.shape]
    found = [
        (orders[s.base] if s.base in orders and orders[s.base].shape == s.before.shape else _order(s.before)) if ordered else None
        for s in shifts
    ]
    before, after = _map("before", [s.before for s in shifts], found), _map("after", [s.after for s in shifts], found)
    return Pair(task, arm, (before, after), tuple(s.seed for s in shifts))


def experts(left: Left) -> list[Experts]:
    """The maps of each model that has experts."""
    found: list[Experts] = []
    models = dict.fromkeys([*left.bases, *(model for model, _, _ in left.shifts)])
    for model in models:
        bases = {seed: base for seed, base in left.bases.get(model, {}).items() if base.load}
        own = {(task, arm): shifts for (name, task, arm), shifts in left.shifts.items() if name == model}
        several = len({shift.base for shifts in own.values() for shift in shifts} | {b.identity for b in bases.values()}) > 1
        orders = {base.identity: _usual(base) for base in bases.values() if len({x.shape for x in base.load.values()}) == 1}
        pairs = tuple(_pair(task, arm, shifts, orders, several) for (task, arm), shifts in own.items())
        families = _families(bases, several) if bases else ()
        if pairs or families:
            found.append(Experts(model, families, tuple(bases), pairs, several))
    return found
