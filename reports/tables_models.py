"""Paper tables of what tells bases apart: one function a style."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, isfinite, nan

from reports.architectures import Row, architectures
from reports.bases import Base, left
from reports.leaderboard import leaderboards
from reports.load import Comparison
from reports.stats import Interval, paired, t_interval
from reports.tables_cells import Block, Cell, Table, cell, refuse, table

FACTS = {  # what runs leave under that name, and what it is called
    "parameters": "parameters",
    "active": "active parameters",
    "flops_per_token": "FLOPs per token",
    "cache_elements": "KV elements per token",
    "cache_bytes": "KV bytes per token",
    "tokens": "pretraining tokens",
}
UNKNOWN = "no base.json: not pretrained here"


def architecture(comparison: Comparison) -> Table:
    """A column for each base: what it costs, its loss, then pass@1 after each method (DeepSeek-V2, Table 9)."""
    found = architectures(comparison, leaderboards(comparison))
    if not found or not found.several or not found.known:
        raise refuse(comparison, "architecture", "two or more models that bakeoff pretrained, with their base.json")
    known = {row.model: row for row in found.rows}
    models = list(dict.fromkeys(model for _, model in comparison.sections))
    first = found.rows[0].model
    rows = [(Cell(said), *(_fact(known.get(model), name) for model in models)) for name, said in FACTS.items()]
    rows.append((Cell("held-out loss"), *(cell(_loss(known.get(model)), "nats", UNKNOWN) for model in models)))
    rows.append((Cell(f"its difference to {first}"), *(_difference(known.get(model), first) for model in models)))
    blocks = [Block("bases", ("", *models), tuple(rows))]
    for reached in found.reached:
        scores = dict(reached.rows)
        lines = [
            (
                Cell(arm),
                *(
                    cell(scores[model][i] if model in scores else t_interval([]), "share", "no run has finished")
                    for model in models
                ),
            )
            for i, arm in enumerate(reached.arms)
        ]
        blocks.append(Block(f"pass@1 on {reached.task}", ("method", *models), tuple(lines)))
    notes = [f"{held}" for held in (found.held,) if held]
    notes.append("Loss in nats per completion token of documents that no base has seen; differences are paired by seed.")
    return table(comparison, "architecture", "Header rows say what each base costs.", blocks, notes)


def _fact(row: Row | None, name: str) -> Cell:
    value = row.facts[name] if row else nan
    return Cell(value, "whole", reason="" if isfinite(value) else UNKNOWN)


def _loss(row: Row | None) -> Interval:
    return row.loss if row else t_interval([])


def _difference(row: Row | None, first: str) -> Cell:
    if row and row.model == first:
        return Cell(nan, "difference in nats", reason="differences are from it")
    return cell(
        row.delta if row else t_interval([]), "difference in nats", f"no base of the same seed and documents as one of {first}"
    )


def balancing(comparison: Comparison) -> Table:
    """Perplexity and MaxVio of each way to balance experts (loss-free balancing, Table 2)."""
    bases = left(comparison).bases
    if not any(isfinite(base.fact("max_violation")) for found in bases.values() for base in found.values()):
        raise refuse(comparison, "balancing", "a base that is a mixture of experts, such as moe, with its base.json")
    models = list(dict.fromkeys(model for _, model in comparison.sections))
    first = models[0]
    losses = {model: _by_seed(bases.get(model, {}), "held_out") for model in models}
    rows: list[tuple[Cell, ...]] = []
    for model in models:
        loss = t_interval(losses[model].values())
        violation = t_interval(_by_seed(bases.get(model, {}), "max_violation").values())
        rows.append(
            (
                Cell(model),
                cell(Interval(exp(loss.mean), exp(loss.low), exp(loss.high), loss.n), "perplexity", UNKNOWN),
                cell(loss, "nats", UNKNOWN),
                _apart(losses, model, first),
                cell(violation, "violation", "no experts" if model in bases else UNKNOWN),
            )
        )
    return table(
        comparison,
        "balancing",
        "Perplexity of held-out documents, and how far the expert that is asked most stands above the mean load of its layer.",
        [Block("bases", ("arm", "perplexity", "loss", f"to {first}", "MaxVio"), tuple(rows))],
        (
            "Perplexity is per completion token: exp of the mean loss over bases, and of its bounds.",
            "Differences are of the loss, paired by seed.",
        ),
    )


def _by_seed(bases: Mapping[int, Base], name: str) -> dict[int, float]:
    return {seed: value for seed, base in bases.items() if isfinite(value := base.fact(name))}


def _apart(losses: Mapping[str, Mapping[int, float]], model: str, first: str) -> Cell:
    if model == first:
        return Cell(nan, "difference in nats", reason="differences are from it")
    return cell(paired(losses[model], losses[first]), "difference in nats", f"no base of the same seed as one of {first}")
