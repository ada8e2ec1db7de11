"""A table as Markdown and LaTeX, rounded, and as CSV and JSON, in full precision with a line or an object a cell."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from unicodedata import normalize

from reports.tables_cells import Block, Cell, Table

LONG = 24  # characters from which a column of text is broken into lines
WIDE = 9  # columns that fit at the usual size
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "–": "--", "—": "---", "’": "'", "…": r"\ldots{}", "Â": r"$\hat{A}$", "⁺": r"$^{+}$", "⁻": r"$^{-}$",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$", "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$",
    "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\epsilon$", "λ": r"$\lambda$",
    "θ": r"$\theta$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "‖": r"$\|$", "∞": r"$\infty$", "√": r"$\surd$",
    "§": r"\S{}", "½": r"$\frac{1}{2}$",
}  # fmt: skip
FIELDS = ("style", "block", "source", "row", "column", "value", "low", "high", "n", "unit", "reason")


def render(table: Table, form: str) -> str:
    """The table in one of FORMATS."""
    return FORMATS[form](table)


def markdown(table: Table) -> str:
    """Pipe tables, as GitHub shows them."""
    reasons = table.reasons
    parts = [f"**{_md(table.title)}** {_md(table.caption)}"]
    for block in table.blocks:
        rows = [[_md(cell.text) + _note(cell, reasons, " [{}]") for cell in row] for row in block.rows]
        ruled = ["---" if _textual(block, i) else "---:" for i in range(len(block.header))]
        lines = [list(map(_md, block.header)), ruled, *rows]
        parts += [f"*{_md(block.named)}*", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += ["\n".join(f"- {_md(note)}" for note in table.notes)]
    if reasons:
        parts += ["\n".join(f"- [{number}] {_md(reason)}" for reason, number in reasons.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """Floats for a document that loads booktabs: the published blocks with the first measured one, then one a block."""
    first = next((n for n, block in enumerate(table.blocks) if not block.source), 0)
    groups = [table.blocks[: first + 1], *((block,) for block in table.blocks[first + 1 :])]
    floats = [_float(table, blocks, number, len(groups)) for number, blocks in enumerate(groups, start=1)]
    return "\n".join([r"% needs \usepackage{booktabs}", *floats])


def _float(table: Table, blocks: Sequence[Block], number: int, of: int) -> str:
    reasons = table.reasons
    part = f" ({number} of {of})" if of > 1 else ""
    lines = [
        r"\begin{table}[htbp]",
        rf"\centering\{'scriptsize' if max(len(block.header) for block in blocks) > WIDE else 'footnotesize'}",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.title + part)} {_tex(table.caption)}}}",
        rf"\label{{tab:{table.style}-{number}}}",
    ]
    for block in blocks:
        columns = "".join(_column(block, i) for i in range(len(block.header)))
        rows = [[_tex(cell.text) + _note(cell, reasons, "$^{{{}}}$") for cell in row] for row in block.rows]
        lines += [
            rf"\par\smallskip\textit{{{_tex(block.named)}}}\par\smallskip",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(map(_tex, block.header)) + r" \\",
            r"\midrule",
            *(rf"{{{first}}} & {' & '.join(rest)} \\" for first, *rest in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    here = {cell.reason for block in blocks for cell in block.cells}
    notes = [*map(_tex, table.notes), *(rf"$^{{{n}}}$\,{_tex(reason)}." for reason, n in reasons.items() if reason in here)]
    return "\n".join([*lines, r"\par\smallskip\raggedright\scriptsize", *(f"{note}\n" for note in notes), r"\end{table}", ""])


def comma(table: Table) -> str:
    """A line a cell, the header of FIELDS on top."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for block in table.blocks:
        for first, *cells in block.rows:
            for column, cell in zip(block.header[1:], cells, strict=True):
                writer.writerow([table.style, block.title, block.source, first.text, column, *_plain(cell).values()])
    return out.getvalue()


def javascript(table: Table) -> str:
    """Blocks of rows, a row the object of its cells by column."""
    blocks = [
        {
            "title": block.title,
            "source": block.source or None,
            "rows": [
                {block.header[0] or "row": first.text}
                | {column: _plain(cell) for column, cell in zip(block.header[1:], cells, strict=True)}
                for first, *cells in block.rows
            ],
        }
        for block in table.blocks
    ]
    said = {"style": table.style, "title": table.title, "caption": table.caption, "blocks": blocks, "notes": table.notes}
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"md": markdown, "csv": comma, "latex": latex, "json": javascript}


def _plain(cell: Cell) -> dict[str, str | float | None]:
    low, high = (bound if isfinite(bound) else None for bound in (cell.low, cell.high))
    value = cell.value if isinstance(cell.value, str) or isfinite(cell.value) else None
    return {"value": value, "low": low, "high": high, "n": cell.n or None, "unit": cell.unit, "reason": cell.reason or None}


def _note(cell: Cell, reasons: Mapping[str, int], mark: str) -> str:
    return mark.format(reasons[cell.reason]) if cell.reason else ""


def _textual(block: Block, column: int) -> bool:
    return all(row[column].unit == "text" for row in block.rows)


def _column(block: Block, column: int) -> str:
    if not _textual(block, column):
        return "r"
    longest = max((len(row[column].text) for row in block.rows), default=0)
    return r"p{0.22\textwidth}" if longest > LONG else "l"


def _md(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for character in ("\\", "|", "*", "_", "`", "<", "~", "["):
        plain = plain.replace(character, f"\\{character}")
    return plain


def _tex(text: str) -> str:
    """Escaped; what pdflatex has no glyph for becomes its nearest ASCII, or a question mark."""
    return "".join(TEX.get(c) or _ascii(c) for c in " ".join(text.split()))


def _ascii(character: str) -> str:
    plain = normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.isprintable() and plain else "?"
