"""The paper table of what methods are: data source, reward, and the gradient coefficient that each run recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from reports.load import Comparison, ReportError, Run, read_json
from reports.stats import t_interval
from reports.tables_cells import Block, Cell, Table, arms, cell, refuse, table

FILE = "paradigm.json"
NUMBERS = {
    "up": ("GC where positive", "signed amount"),
    "share_up": ("positive", "share"),
    "down": ("GC where negative", "signed amount"),
    "share_down": ("negative", "share"),
    "zero": ("zero", "share"),
    "low": ("lowest GC", "signed amount"),
    "high": ("highest GC", "signed amount"),
}
EXTREMES = {"low": min, "high": max}


def paradigm(comparison: Comparison) -> Table:
    """Method, data source, reward and gradient coefficient, measured on the first batch (DeepSeekMath, Table 10)."""
    said = {run.id: _read(run) for run in comparison.runs}
    if not any(one.coefficients for one in said.values()):
        raise refuse(comparison, "paradigm", f"a run that recorded its gradient coefficient in {FILE}")
    blocks: list[Block] = []
    for task, model in comparison.sections:
        rows: list[tuple[Cell, ...]] = []
        for label, runs in arms(comparison, task, model).items():
            found = [said[run.id].coefficients for run in runs if said[run.id].coefficients]
            missing = next((said[run.id].missing for run in runs if said[run.id].missing), "")
            over = sorted({str(one.get("over")) for one in found})
            rows.append(
                (
                    Cell(label),
                    *(_told(runs, name, missing) for name in ("samples from", "reward")),
                    *(_number(found, key, unit, missing) for key, (_, unit) in NUMBERS.items()),
                    Cell(", ".join(over)) if over else Cell(nan, reason=missing),
                    _error(found, missing),
                )
            )
        header = ("method", "data source", "reward", *(name for name, _ in NUMBERS.values()), "over", "error")
        blocks.append(Block(f"{task}, {model}", header, tuple(rows)))
    return table(
        comparison,
        "paradigm",
        "GC multiplies the gradient of a token's log-probability; here as each run recorded it on its first batch.",
        blocks,
        (
            "Over tokens: the loss reads the tokens taken alone, and GC is exact. Over the vocabulary: it reads whole "
            "distributions, and GC is that of the token taken.",
            "Positive, negative, zero: the shares of tokens. Lowest and highest are of all runs.",
            "Error: of the gradient rebuilt from the coefficients, to autograd's, relative; the largest of all runs.",
        ),
    )


@dataclass(frozen=True)
class Recorded:
    """What a run recorded, or why there is nothing."""

    coefficients: Mapping[str, Any]
    missing: str = ""


def _read(run: Run) -> Recorded:
    path = run.directory / FILE
    if not path.exists():
        reason = "it takes no step" if run.done and run.final("step") == 0 else run.reason.strip().split("\n")[-1]
        return Recorded({}, f"no {FILE}" + (f": {reason}" if reason else ""))
    try:
        return Recorded(read_json(path))
    except ReportError as error:
        return Recorded({}, f"{run.id}/{FILE}: {error.problem}")


def _told(runs: Sequence[Run], name: str, missing: str) -> Cell:
    """What the algorithm card says; a card that does not know the word has none of it."""
    card = next((run.card for run in runs if run.card), {})
    known = bool(card) or any(run.done for run in runs)
    return Cell(card.get(name, "none")) if known else Cell(nan, reason=missing)


def _number(found: Sequence[Mapping[str, Any]], key: str, unit: str, missing: str) -> Cell:
    """The t interval over runs; empty where it is null in one of them, so that no seed is dropped in silence."""
    values = _numbers(found, key)
    if len(values) < len(found):
        return Cell(nan, unit, reason=f"none in the first batch of {len(found) - len(values)} of {len(found)} runs")
    if values and key in EXTREMES:
        return Cell(EXTREMES[key](values), unit, n=len(values))
    return cell(t_interval(values), unit, missing)


def _error(found: Sequence[Mapping[str, Any]], missing: str) -> Cell:
    values = _numbers(found, "error")
    reason = "cannot be rebuilt from the tokens taken alone" if found else missing
    return Cell(max(values), "amount", n=len(values)) if values else Cell(nan, "amount", reason=reason)


def _numbers(found: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    values = [one.get(key) for one in found]
    return [float(x) for x in values if isinstance(x, int | float) and not isinstance(x, bool) and isfinite(x)]
