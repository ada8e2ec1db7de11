"""The numbers behind a figure, as comma-separated values: what the reader opens under it, and downloads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

FORMULA = ("=", "+", "-", "@", "\t")
Value = str | float | int | None


@dataclass(frozen=True)
class Data:
    """A header and rows, and what the file is called."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def csv(self) -> str:
        """One line a row. Numbers have six significant digits; what is not known is empty; text never begins a formula."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return file.getvalue()


def data(name: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> Data:
    """Rows of as many values as there are columns."""
    found = Data(name, tuple(columns), tuple(tuple(row) for row in rows))
    assert all(len(row) == len(found.columns) for row in found.rows)
    return found


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return f"{value:.6g}" if isfinite(value) else ""
