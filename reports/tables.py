"""Paper tables: published numbers beside measured ones, in the shape that the paper gave them."""

from __future__ import annotations

from collections.abc import Callable

from reports.load import Comparison
from reports.tables_cells import Table
from reports.tables_claims import claims
from reports.tables_methods import cost, deepseekmath, passk, r1_distill, r1_stages
from reports.tables_models import architecture, balancing
from reports.tables_paradigm import paradigm
from reports.tables_render import FORMATS, render

__all__ = ["FORMATS", "STYLES", "render", "sentences"]

STYLES: dict[str, Callable[[Comparison], Table]] = {
    "deepseekmath": deepseekmath,
    "paradigm": paradigm,
    "r1-distill": r1_distill,
    "r1-stages": r1_stages,
    "architecture": architecture,
    "balancing": balancing,
    "cost": cost,
    "passk": passk,
    "claims": claims,
}


def sentences() -> dict[str, str]:
    """What each style shows."""
    return {name: (style.__doc__ or "").strip().split("\n")[0] for name, style in STYLES.items()}
