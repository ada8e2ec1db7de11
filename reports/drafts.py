"""What drafts by multi-token prediction are worth in decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

from reports.bases import Left
from reports.stats import Interval, wilson


@dataclass(frozen=True)
class Draft:
    """What a model's drafts were worth on one task, over its bases."""

    model: str
    task: str
    seeds: tuple[int, ...]
    acceptance: Interval
    drafted: float
    per_round: float
    speed: float
    prompts: float
    different: float
    ties: float


def _draft(model: str, task: str, counts: Mapping[int, Mapping[str, float]]) -> Draft:
    total = {key: sum(one[key] for one in counts.values()) for key in next(iter(counts.values()))}
    return Draft(
        model,
        task,
        tuple(counts),
        wilson(int(total["accepted"]), int(total["drafted"])),
        total["drafted"],
        total["tokens"] / total["rounds"] if total["rounds"] else nan,
        total["plain_seconds"] / total["drafted_seconds"] if total["drafted_seconds"] else nan,
        total["prompts"],
        total["different"],
        total["ties"],
    )


def drafts(left: Left) -> list[Draft]:
    """A row for each model and task."""
    return [_draft(model, task, counts) for (model, task), counts in left.drafts.items()]
