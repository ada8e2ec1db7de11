"""A comparison's results in one small file, to keep or to commit.

    NAME.jsonl.xz    a line for the comparison, then one for each of its runs that is done

What several runs share, such as their base and their problems, is there once: the first line has all texts, and the others say
of each file which of them it is; of an evaluation, which of them each of its columns is.

Unpacked, these runs count as done, for `bakeoff report` and for `bakeoff run`: so a grid may be computed in pieces, on several
days or machines. Left out are weights, the rollouts shown while training, the completions behind a learning curve, and the
prompts and completions of all problems but the first.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import files
from harness.comparison import NAME, RunConfig
from harness.errors import BakeoffError
from harness.parse import validated
from harness.shard import Shard

TEXTS = 20  # problems of each evaluation whose prompts and completions are kept
KEPT = re.compile(
    r"(config|environment|card|base|drafts|paradigm|lm_eval)\.json|(metrics|experts)\.jsonl|evals/\d{6}-[a-z0-9._-]+\.jsonl"
)
TEXT = ("prompt", "completion")
TABLES = ("comparison.toml", "runs.txt", "claims.jsonl", "search.json", "trials.jsonl")  # of a comparison
LISTS = ("runs.txt", "claims.jsonl")  # of those: lines that stand beside what is there already; the others stay as they are


def pack(name: str, root: Path, output: Path, part: Shard) -> int:
    """Write a slice of the finished runs of a comparison to `output`; how many they are."""
    folder = root / "comparisons" / name
    listed = (folder / "runs.txt").read_text(encoding="utf-8")
    done = [run for run in listed.split() if (root / "runs" / run / "DONE").exists()]
    texts = dict[str, int]()  # each once, and its place

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    runs = list[dict[str, Any]]()
    for run in done[part.index :: part.of]:
        found = {
            path: place(said) if isinstance(said, str) else {k: place(v) for k, v in said.items()}
            for path, said in kept(root / "runs" / run)
        }
        runs.append({"run": run, "files": found})
    tables = {path: (folder / path).read_text(encoding="utf-8") for path in TABLES if (folder / path).exists()}
    lines = [{"comparison": name, "files": tables, "texts": list(texts)}, *runs]
    files.write(output, lzma.compress(files.jsonl(lines).encode(), preset=9))
    return len(runs)


def kept(folder: Path) -> Iterator[tuple[str, str | dict[str, str]]]:
    """The files of a run that are packed: their text, or that of each column.

    Of evaluations those at the end, or the last on validation where there is no other.
    """
    measured = sorted((folder / "evals").glob("*.jsonl"))
    at_the_end = [path for path in measured if not path.stem.endswith("-validation")] or measured[-1:]
    for path in (*sorted(folder.glob("*.json*")), *at_the_end):
        if KEPT.fullmatch(name := str(path.relative_to(folder))):
            yield name, columns(shortened(path)) if path in at_the_end else path.read_text(encoding="utf-8")


def columns(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The values of each field, row by row."""
    return {name: json.dumps([row[name] for row in rows], ensure_ascii=False) for name in (rows[0] if rows else ())}


def restored(said: int | dict[str, int], texts: list[str]) -> str:
    """The text of a file, from the place of it or of its columns."""
    if not isinstance(said, dict):
        return texts[said]
    values = {name: json.loads(texts[at]) for name, at in said.items()}
    return files.jsonl(dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))


def shortened(path: Path) -> list[dict[str, Any]]:
    """The lines of an evaluation, without what was read and written but for the first problems."""
    rows = files.read_jsonl(path)
    first = set(list(dict.fromkeys(row["problem"] for row in rows))[:TEXTS])
    return [row if row["problem"] in first else {k: "" if k in TEXT else v for k, v in row.items()} for row in rows]


def unpack(packed: Path, root: Path) -> tuple[str, int]:
    """Put back what `pack` wrote; the comparison's name, and how many runs were not there before.

    Raises BakeoffError, nothing written, for a file that is not there, or that `pack` has not written.
    """
    if not packed.exists():
        raise BakeoffError(f"{packed}: no such file; bakeoff pack writes docs/results/NAME.jsonl.xz")
    try:
        lines = [json.loads(line) for line in lzma.decompress(packed.read_bytes()).splitlines()]
        first, *runs = lines
        name, tables, texts = str(first["comparison"]), dict[str, str](first["files"]), list(map(str, first["texts"]))
        strange = [path for line in runs for path in line["files"] if not KEPT.fullmatch(path)]
        if strange or not NAME.fullmatch(name) or not tables.keys() <= set(TABLES):
            raise BakeoffError(f"{packed}: not a packed comparison: {[*strange, name][0]!r} does not belong in one")
        found = dict[str, dict[str, str]]()
        for line in runs:
            run, of_run = line["run"], {path: restored(said, texts) for path, said in line["files"].items()}
            if validated(RunConfig, json.loads(of_run["config.json"]), str(packed)).id != run:
                raise BakeoffError(f"{packed}: {run} is not the run that its config.json describes")
            found[run] = of_run
    except (OSError, EOFError, lzma.LZMAError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BakeoffError(f"{packed}: not a packed comparison: {error!r}") from None
    here = root / "comparisons" / name
    with files.lock(here / "lock", "running this comparison"):
        for path, text in tables.items():
            if not (here / path).exists():
                files.write(here / path, text)
            elif path in LISTS:
                known = (here / path).read_text(encoding="utf-8").splitlines()
                files.write(here / path, "".join(f"{line}\n" for line in dict.fromkeys([*known, *text.splitlines()])))
    missing = [run for run in found if not (root / "runs" / run / "DONE").exists()]
    for run in missing:
        folder = root / "runs" / run
        with files.lock(folder / "lock", "running"):
            for path, content in found[run].items():
                files.write(folder / path, content)
            files.write(folder / "DONE", "")
    return name, len(missing)
