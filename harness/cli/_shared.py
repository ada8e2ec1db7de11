"""Options and look-ups that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import BakeoffError, meant


def mounted(root: Path) -> Path:
    """The root; BakeoffError for a URL: runs lock, append and swap folders, which object stores cannot."""
    if root.parts and root.parts[0].endswith(":") and len(root.parts[0]) > 2:
        raise BakeoffError(f"--root {root}: a URL is no folder; mount the storage and give the path (docs/scale.md)")
    return root


Root = Annotated[
    Path,
    typer.Option(
        "--root",
        file_okay=False,
        help="where runs/, bases/ and comparisons/ are kept",
        envvar="BAKEOFF_ROOT",
        callback=mounted,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON on stdout instead of text")]


def known_comparison(root: Path, name: str) -> str:
    """The name; BakeoffError with the nearest one if there is no comparison of it."""
    known = sorted(p.parent.name for p in (root / "comparisons").glob("*/runs.txt"))
    if name not in known:
        raise BakeoffError(f"no comparison named {name!r}{meant(name, known) or '; make one with bakeoff run SWEEP.toml'}")
    return name


def known_run(root: Path, name: str) -> str:
    """The name; BakeoffError with the nearest one if there is no run of it."""
    known = sorted(p.parent.name for p in (root / "runs").glob("*/config.json"))
    if name not in known:
        raise BakeoffError(f"no run named {name!r}{meant(name, known) or '; there are no runs here yet'}")
    return name


def printable(text: str) -> str:
    """Model text without what a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
