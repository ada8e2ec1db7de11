"""Commands that read what was computed: leaderboards, reports, tables, claims, completions, and results in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli._shared import AsJson, Root, known_comparison, known_run, printable
from harness.errors import GATE_FAILED, BakeoffError, meant


def shown(root: Path, name: str, as_json: bool, output: Path | None = None, fail_if: Sequence[str] = ()) -> None:
    """The leaderboard on stdout and the report on disk; exits with GATE_FAILED where a regression of `fail_if` holds."""
    from reports.gate import decide, parse
    from reports.html import write
    from reports.leaderboard import finding, leaderboards, records, text
    from reports.load import load

    comparison = load(root, name)
    gates = [decision for gate in [parse(text, comparison) for text in fail_if] for decision in decide(gate, comparison)]
    boards = leaderboards(comparison)
    path = write(root, name, output)
    if as_json:
        tables = [{"task": b.task, "model": b.model, "arms": records(b.frame)} for b in boards]
        decided = [{"gate": d.gate.text, "task": d.task, "model": d.model, "failed": d.failed, "said": d.text} for d in gates]
        print(json.dumps({"finding": finding(boards), "leaderboards": tables, "gates": decided, "report": str(path)}, indent=2))
    else:
        for board in boards:
            print(f"{board.task} · {board.model} · {board.split} split\n{text(board.frame)}\n")
        print(finding(boards))
        for decision in gates:
            print(decision.text)
        print(f"report: {path}")
    if any(decision.failed for decision in gates):
        raise typer.Exit(GATE_FAILED)


def report(
    name: Annotated[str, typer.Argument(help="the name of a comparison: the sweep file's, without .toml")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the HTML file to write")] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="exit with 5 if the interval says so: 'grpo.pass@1 < sft.pass@1'; may be repeated"),
    ] = None,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Render a comparison as one self-contained HTML file."""
    shown(root, known_comparison(root, name), as_json, output, fail_if or ())


def table(
    name: Annotated[str, typer.Argument(help="the name of a comparison: the sweep file's, without .toml")],
    style: Annotated[str, typer.Option(help="whose shape; see bakeoff list tables")],
    form: Annotated[str, typer.Option("--format", help="md or latex, rounded; csv or json, in full precision")] = "md",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the file to write instead of stdout")] = None,
    root: Root = Path(),
) -> None:
    """Print what was measured beside what a paper published, in the shape of the paper's table."""
    from reports.load import load
    from reports.tables import FORMATS, STYLES, render

    for said, known, what in ((style, STYLES, "style"), (form, FORMATS, "format")):
        if said not in known:
            raise BakeoffError(f"no {what} named {said!r}{meant(said, known)}")
    text = render(STYLES[style](load(root, known_comparison(root, name))), form)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        print(output)
    else:
        print(text, end="")


def claims(
    name: Annotated[str, typer.Argument(help="the name of a comparison whose file has [claims.NAME] tables")],
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """The verdict on each claim of a comparison: PASS, FAIL, INCONCLUSIVE or NOT TESTABLE, with intervals and margins."""
    from dataclasses import asdict

    from reports.claims import verdicts
    from reports.load import load

    found = verdicts(load(root, known_comparison(root, name)))
    if not found:
        raise BakeoffError(f"{name} makes no claims; add a [claims.NAME] table to its file (README, Claims)")
    if as_json:
        print(json.dumps([asdict(v) for v in found], indent=2))
        return
    for v in found:
        print(f"{v.verdict:<13} {v.claim}: {v.text} ({v.source})")
        for part in v.parts:
            i = part.interval
            print(f"    {part.outcome:<13} {part.name}: {i.mean:+.4g} ({i.low:+.4g} to {i.high:+.4g} at {part.confidence:.1%}), "
                  f"asked {part.margin}")  # fmt: skip
        if not v.parts:
            print(f"    {v.reason}")
        print(f"    {v.registered}")


def compare(
    before: Annotated[str, typer.Argument(help="a run's name; see bakeoff list runs")],
    after: Annotated[str, typer.Argument(help="the run to hold against it")],
    n: Annotated[int, typer.Option("-n", min=0, help="how many flipped problems of each kind to show")] = 5,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """What differs between two runs: settings, a paired test over problems, and the problems that flipped."""
    from dataclasses import asdict

    from reports.pair import pair

    found = pair(root, known_run(root, before), known_run(root, after))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    print("settings that differ")
    for key, one, other in found.settings:
        print(f"    {key:<24} {one}  →  {other}")
    d = found.difference
    print(f"pass@1 {found.scores[0]:.1%}  →  {found.scores[1]:.1%}: {d.mean:+.1%}, 95% CI {d.low:+.1%} to {d.high:+.1%}, "
          f"paired over {d.n} problems (these two checkpoints, not their methods)")  # fmt: skip
    for name, flips in (("gained", found.gained), ("lost", found.lost)):
        print(f"{name}: {len(flips)} problems")
        for flip in flips[:n]:
            print(f"    {printable(flip.prompt)} (expected {printable(flip.expected)})  {flip.before:.0%} → {flip.after:.0%}")
            print(f"        {printable(flip.completion_before)}  →  {printable(flip.completion_after)}")


def samples(
    run: Annotated[str, typer.Argument(help="a run's name; see bakeoff list runs")],
    wrong: Annotated[bool, typer.Option("--wrong", help="only completions that are wrong")] = False,
    n: Annotated[int, typer.Option("-n", min=1, help="how many")] = 20,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Completions of a run's last evaluation, with the verdict and its reason."""
    from harness import files

    evaluations = root / "runs" / known_run(root, run) / "evals"
    found = sorted(evaluations.glob("*-test.jsonl")) or sorted(evaluations.glob("*-validation.jsonl"))
    if not found:
        raise BakeoffError(f"{run} has not been evaluated yet")
    rows = [r for r in files.read_jsonl(found[-1]) if not (wrong and r["reward"] == 1.0)][:n]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for r in rows:
        mark = "right" if r["reward"] == 1.0 else "wrong"
        print(f"{mark}  {printable(r['prompt'])} {printable(r['completion'])}\n       {printable(r['reason'])}")


def pack(
    name: Annotated[str, typer.Argument(help="the name of a comparison")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="where to (default: docs/results/NAME.jsonl.xz)")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="only the I-th of N slices of the runs")] = "0/1",
    root: Root = Path(),
) -> None:
    """Write the finished runs of a comparison to a small file, without weights: to commit, or to continue elsewhere."""
    from harness.pack import pack
    from harness.shard import Shard

    part = Shard.read(shard)
    slice_ = f"-{part.index}-of-{part.of}" if part.of > 1 else ""
    output = output or Path("docs/results") / f"{name}{slice_}.jsonl.xz"
    print(f"{pack(known_comparison(root, name), root, output, part)} runs in {output}, {output.stat().st_size / 1e6:.2f} MB")


def unpack(
    packed: Annotated[list[Path], typer.Argument(help="files that bakeoff pack has written")],
    root: Root = Path(),
) -> None:
    """Put the runs of packed comparisons back, where they count as done: report them, or run what is missing."""
    from harness.pack import unpack

    for path in packed:
        name, runs = unpack(path, root)
        print(f"{name}: {runs} runs unpacked; bakeoff report {name} shows them")
