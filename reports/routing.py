"""How even the load of the experts was in pretraining, and what a base is worth without its best experts."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import numpy as np

from reports.bases import Base, counted, mean
from reports.curves import Panel, Series, panel, series
from reports.looks import Look
from reports.numbers import count, nats
from reports.quantities import Axis, Quantity
from reports.stats import t_interval

PRETRAINING = Axis("pretraining", "pretraining steps", ("step",))
MASKED = Axis("masked", "experts masked", ("masked",))


def violations(bases: Mapping[str, Mapping[int, Base]], looks: Mapping[str, Look]) -> Panel | None:
    """MaxVio over the steps of pretraining, a line a model."""
    column, gone = "moe/max_violation", list[str]()
    routed = {m: [b for b in found.values() if column in b.metrics and "step" in b.metrics] for m, found in bases.items()}
    for model, found in routed.items():
        if found:
            share = mean([base.fact("collapsed") for base in found])
            gone.append(f"{model} {count(share)}{' (collapsed)' if share > 0 else ''}")
    lines = [s for model, found in routed.items() if (s := series(model, found, column, PRETRAINING))]
    caption = (
        "Of the worst layer, in the batch of a step, whose documents are of like length and so of one family: it is above the "
        "global one. Line: mean over bases; band: lowest to highest; "
        f"{counted({line.label: bases[line.label] for line in lines})}. Experts under a tenth of the mean load in the end, on "
        f"held-out documents of all families: {', '.join(gone) or 'not known'}."
    )
    return panel(
        Quantity(column, "MaxVio in pretraining", caption),
        {PRETRAINING: lines},
        looks,
        {PRETRAINING: max((float(line.x[-1]) for line in lines), default=0.0)},
    )


def masked(bases: Mapping[str, Mapping[int, Base]], looks: Mapping[str, Look]) -> Panel | None:
    """Held-out loss against how many of its best experts every token is kept from."""
    lines: list[Series] = []
    for model, found in bases.items():
        losses = [base.masked for base in found.values() if base.masked]
        shared = [r for r in (losses[0] if losses else ()) if all(r in loss for loss in losses)]
        spreads = [t_interval(loss[r] for loss in losses) for r in shared]
        if len(shared) > 1:
            low, high = ([getattr(i, edge) if isfinite(i.low) else i.mean for i in spreads] for edge in ("low", "high"))
            lines.append(Series(model, *(np.array(v, float) for v in (shared, [i.mean for i in spreads], low, high))))
    caption = (
        "Nats per completion token of documents that the base has not seen, with every token kept from the experts that its "
        "router scores highest and sent to the next: the steeper, the less can one expert stand in for another. Line: mean over "
        f"bases; band: 95% t interval; {counted({line.label: bases[line.label] for line in lines})}."
    )
    return panel(
        Quantity("masked", "Held-out loss without the best experts", caption, write=nats, from_zero=False, least=0.0),
        {MASKED: lines},
        looks,
        {MASKED: max((float(line.x[-1]) for line in lines), default=0.0)},
    )
