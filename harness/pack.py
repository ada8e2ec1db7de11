"""A comparison's results in one small file, to keep or to commit.

    NAME.jsonl.gz    a line for the comparison, then one for each of its runs that is done

Unpacked, these runs count as done, for `bakeoff report` and for `bakeoff run`: so a grid may be computed in pieces, on several
days or machines. Left out are weights, the rollouts shown while training, and the text of all completions but those of the
first problems.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import files
from harness.comparison import NAME, RunConfig
from harness.errors import BakeoffError, meant
from harness.parse import validated

TEXTS = 20  # problems of each evaluation whose completions are kept
KEPT = re.compile(r"(config|environment|card|base|drafts)\.json|(metrics|experts)\.jsonl|evals/\d{6}-[a-z0-9._-]+\.jsonl")
TEXT = ("prompt", "completion", "answer", "expected", "reason")


def pack(name: str, root: Path, output: Path) -> int:
    """Write the finished runs of a comparison to `output`; how many they are. Raises BakeoffError for an unknown comparison."""
    folder = root / "comparisons" / name
    if not (folder / "runs.txt").exists():
        known = sorted(p.parent.name for p in (root / "comparisons").glob("*/runs.txt"))
        raise BakeoffError(f"no comparison named {name!r}{meant(name, known) or '; make one with bakeoff run SWEEP.toml'}")
    listed = (folder / "runs.txt").read_text(encoding="utf-8")
    done = [run for run in listed.split() if (root / "runs" / run / "DONE").exists()]
    lines = [
        {
            "comparison": name,
            "files": {path: (folder / path).read_text(encoding="utf-8") for path in ("comparison.toml", "runs.txt")},
        },
        *({"run": run, "files": dict(kept(root / "runs" / run))} for run in done),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(gzip.compress(files.jsonl(lines).encode(), mtime=0))
    return len(done)


def kept(folder: Path) -> Iterator[tuple[str, str]]:
    """The files of a run that are packed, and their text."""
    for path in sorted(p for p in folder.rglob("*.json*") if p.is_file()):
        if KEPT.fullmatch(name := str(path.relative_to(folder))):
            yield name, files.jsonl(shortened(path)) if name.startswith("evals/") else path.read_text(encoding="utf-8")


def shortened(path: Path) -> list[dict[str, Any]]:
    """The lines of an evaluation, without text but for the first problems."""
    rows = files.read_jsonl(path)
    first = set(list(dict.fromkeys(row["problem"] for row in rows))[:TEXTS])
    return [row if row["problem"] in first else {k: "" if k in TEXT else v for k, v in row.items()} for row in rows]


def unpack(packed: Path, root: Path) -> tuple[str, int]:
    """Put back what `pack` wrote; the comparison's name, and how many runs were not there before.

    Raises BakeoffError, nothing written, for a file that `pack` has not written.
    """
    try:
        lines = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
        first, *runs = lines
        name, tables = str(first["comparison"]), dict[str, str](first["files"])
        for line in runs:
            config = validated(RunConfig, json.loads(line["files"]["config.json"]), str(packed))
            if config.id != line["run"]:
                raise BakeoffError(f"{packed}: {line['run']} is not the run that its config.json describes")
        strange = [path for line in runs for path in line["files"] if not KEPT.fullmatch(path)]
        if strange or not NAME.fullmatch(name) or tables.keys() != {"comparison.toml", "runs.txt"}:
            raise BakeoffError(f"{packed}: not a packed comparison: {[*strange, name][0]!r} does not belong in one")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BakeoffError(f"{packed}: not a packed comparison: {error!r}") from None
    for path, text in tables.items():
        files.write(root / "comparisons" / name / path, text)
    missing = [line for line in runs if not (root / "runs" / line["run"] / "DONE").exists()]
    for line in missing:
        folder = root / "runs" / line["run"]
        with files.lock(folder / "lock", "running"):
            for path, text in line["files"].items():
                files.write(folder / path, text)
            files.write(folder / "DONE", "")
    return name, len(missing)
