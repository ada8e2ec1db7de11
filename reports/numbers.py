"""How numbers are written, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite, isinf, isnan, log10

DASH = "–"
SUFFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def signed(value: float, text: str) -> str:
    return f"−{text}" if value < 0 and float(text) != 0 else f"+{text}"


def percent(share: float, digits: int = 1) -> str:
    """0.581 → `58.1`."""
    return f"{100 * share:.{digits}f}" if isfinite(share) else DASH


def points(share: float) -> str:
    """A difference of shares, 0.354 → `+35.4`."""
    return signed(share, f"{abs(100 * share):.1f}") if isfinite(share) else DASH


def nats(value: float) -> str:
    """A loss, 0.7717 → `0.772`."""
    return f"{value:.3f}" if isfinite(value) else DASH


def more_nats(value: float) -> str:
    """A difference of losses, −0.0212 → `−0.021`."""
    return signed(value, f"{abs(value):.3f}") if isfinite(value) else DASH


def count(value: float) -> str:
    """A mean of counts: 5.0 → `5`, 0.333 → `0.33`."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isfinite(value) else DASH


def whole(value: float) -> str:
    """4096.0 → `4,096`"""
    return f"{value:,.0f}" if isfinite(value) else DASH


def times(value: float) -> str:
    """A ratio, 1.357 → `×1.36`."""
    return f"×{value:.2f}" if isfinite(value) else DASH


def si(value: float) -> str:
    """Three significant digits and a suffix: 2,013,000 → `2.01M`."""
    if isinf(value):
        return "∞"
    if isnan(value):
        return DASH
    sign, size = ("−" if value < 0 else ""), abs(value)
    if size < 5e-4:
        return "0" if size == 0 else f"{sign}{size:.0e}"
    digits = f"{size:.3g}"
    size = float(digits)
    for scale, suffix in SUFFIXES:
        if size >= scale:
            return f"{sign}{_three(size / scale)}{suffix}"
    return sign + _three(size)


def tick(value: float) -> str:
    """A round number as an axis writes it: 0.2, 50, 1.5M."""
    size = abs(value)
    scale, suffix = next(((scale, suffix) for scale, suffix in SUFFIXES if size >= scale), (1.0, ""))
    return f"{'−' if value < 0 else ''}{size / scale:.6g}{suffix}"


def _three(size: float) -> str:
    decimals = max(0, 2 - floor(log10(size)))
    return f"{size:.{min(decimals, 3)}f}"


def span(counts: Sequence[int], what: str) -> str:
    """`3 seeds`, `1 to 3 seeds`, `no seed`."""
    if not counts:
        return f"no {what}"
    low, high = min(counts), max(counts)
    return f"{low} {what}{'s' if low != 1 else ''}" if low == high else f"{low} to {high} {what}s"


def said_seeds(seeds: Sequence[int]) -> str:
    """`seed 0`, `seeds 0, 1, 2`."""
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"
