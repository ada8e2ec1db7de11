"""How numbers are written, in one place."""

from __future__ import annotations

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
