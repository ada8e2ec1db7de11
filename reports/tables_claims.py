"""The paper table of what was claimed and what the runs say of it."""

from __future__ import annotations

from math import nan

from reports.claims import Verdict, verdicts
from reports.load import Comparison
from reports.tables_cells import Block, Cell, Table, cell, refuse, table


def claims(comparison: Comparison) -> Table:
    """The verdict on every claim of the comparison, with the interval and the margin of each part."""
    found = verdicts(comparison)
    if not found:
        raise refuse(comparison, "claims", "claims: [claims.NAME] in its file")
    rows = tuple(row for verdict in found for row in _rows(verdict))
    registered = dict.fromkeys(verdict.registered for verdict in found if verdict.registered)
    return table(
        comparison,
        "claims",
        "A claim passes if all of its parts pass, and fails if one fails.",
        [Block("claims", ("claim", "part", "measured", "asked", "confidence", "outcome", "verdict", "source"), rows)],
        (*(f"{verdict.claim}: {verdict.text}." for verdict in found), *(f"Claims {said}." for said in registered)),
        "the interval, Student-t over seeds, at the confidence that Holm's procedure gives the part among all",
    )


def _rows(verdict: Verdict) -> list[tuple[Cell, ...]]:
    if not verdict.parts:
        nothing = Cell(nan, "signed amount", reason=verdict.reason)
        return [(Cell(verdict.claim), Cell(""), nothing, Cell(""), Cell(nan, "share", reason=verdict.reason), Cell(""),
                 Cell(verdict.verdict), Cell(verdict.source))]  # fmt: skip
    several = len(verdict.parts) > 1
    return [
        (
            Cell(f"{verdict.claim}, {number}" if several else verdict.claim),
            Cell(part.name),
            cell(part.interval, "signed amount", verdict.reason),
            Cell(part.margin),
            Cell(part.confidence, "share"),
            Cell(part.outcome),
            Cell(verdict.verdict),
            Cell(verdict.source),
        )
        for number, part in enumerate(verdict.parts, start=1)
    ]
