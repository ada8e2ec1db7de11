"""The command line: the only module that knows methods, tasks and reports, and that nothing imports."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import GATE_FAILED, INTERRUPTED, MISSING, RUNS_FAILED, BakeoffError, meant

if TYPE_CHECKING:
    from harness.comparison import Comparison, RunConfig

app = typer.Typer(
    name="bakeoff",
    help="Which post-training method should I use for my model and my task, and is the difference real?",
    epilog="Start with:  bakeoff run sweeps/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


class Where(StrEnum):
    local = "local"
    ray = "ray"


@app.command()
def run(
    sweep: Annotated[Path, typer.Argument(help="a comparison, such as sweeps/quickstart.toml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="change a setting: seeds=[0,1] budget.flops=1e12 methods.grpo.beta=0.1"),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="runs at a time; 0: cores divided by threads a run, or 1 on a GPU")] = 0,
    backend: Annotated[Where, typer.Option(help="this machine, or a Ray cluster whose nodes share the root")] = Where.local,
    address: Annotated[str | None, typer.Option(help="of the Ray cluster; without it RAY_ADDRESS, else one is started")] = None,
    devices: Annotated[int, typer.Option(min=1, help="processes of each run, a device for each, through accelerate")] = 1,
    shard: Annotated[str, typer.Option(metavar="I/N", help="only the I-th of N slices of the runs, from 0/N on")] = "0/1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the runs, what is done and what it will take, and start nothing")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget this comparison's runs and start them anew")] = False,
    wandb: Annotated[bool, typer.Option(help="mirror the runs to W&B (offline unless you are logged in)")] = True,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Run or resume a comparison; the leaderboard and the report's path come last.

    The same command again does nothing that is done, and continues what was interrupted. Ctrl-C saves and stops.
    """
    from harness import files
    from harness.comparison import Comparison, read_table, resolve_device
    from harness.launch import forked, launch
    from harness.shard import Shard

    overrides = overrides or []
    part = Shard.read(shard)
    check_backend(backend, address)
    if devices > 1 and backend is Where.ray:
        raise BakeoffError("--devices: a Ray task is one process; take --backend local, or fewer devices")
    if devices > 1 and find_spec("accelerate") is None:
        raise BakeoffError("accelerate is not installed; pip install 'bakeoff[devices]'", MISSING)
    comparison = Comparison.load(sweep, overrides)
    if comparison.claims:
        from reports.claims import read

        read(comparison.claims, str(sweep))
    at_once = workers or (
        1 if resolve_device(comparison.device) == "cuda" else max(1, (os.cpu_count() or 1) // comparison.threads)
    )
    at_once = max(1, at_once // devices)
    if dry_run:
        planned(root, comparison, part.of_runs(comparison.runs(root)), at_once, as_json)
        return
    command = shlex.join(["bakeoff", "run", str(sweep), *overrides])
    if wandb and find_spec("wandb") is None:
        print("wandb is not installed, so nothing is mirrored; pip install 'bakeoff[wandb]' or pass --no-wandb", file=sys.stderr)
        wandb = False
    start = forked
    if backend is Where.ray:
        from harness.cluster import on_ray

        start, room = on_ray(address, comparison.threads, resolve_device(comparison.device))
        at_once = workers or room
    elif devices > 1:
        from harness.group import accelerated

        start = accelerated(devices)
    source = files.toml(read_table(sweep, overrides)) if overrides else sweep.read_text(encoding="utf-8")
    runs, outcome = launch(comparison, root, source, command, at_once, fresh, wandb, part, start)
    if outcome.interrupted:
        left = len(runs) - len(outcome.done) - len(outcome.failed)
        print(f"stopped with {left} runs to go; the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    shown(root, comparison.name, as_json)
    if outcome.failed:
        print(f"{len(outcome.failed)} runs failed; why is in their FAILED files", file=sys.stderr)
        raise typer.Exit(RUNS_FAILED)


def check_backend(backend: Where, address: str | None) -> None:
    if address and backend is Where.local:
        raise BakeoffError(f"--address {address} is of a Ray cluster: add --backend ray")
    if backend is Where.ray and find_spec("ray") is None:
        raise BakeoffError("Ray is not installed; pip install 'bakeoff[ray]', here and on every node", MISSING)


def planned(root: Path, comparison: Comparison, runs: Sequence[RunConfig], at_once: int, as_json: bool) -> None:
    """The runs and what they will take, on stdout."""
    from dataclasses import asdict

    from harness.capacity import capacity, measured, spread
    from harness.launch import is_done
    from reports.stats import detectable

    rows = [{"run": r.id, "done": is_done(root, r)} for r in runs]
    known = measured(root)
    asked = capacity(comparison, [r for r, row in zip(runs, rows, strict=True) if not row["done"]], known)
    seeds = len(comparison.seeds)
    at_once = max(1, min(at_once, asked.runs))
    told = list[dict[str, Any]]()
    for run in {(r.task, r.model): r for r in runs}.values():
        deviation, pairs = spread(run, known)
        least = detectable(deviation, seeds) if seeds > 1 else None
        told.append({"task": run.task, "model": run.model, "seeds": seeds, "detectable": least, "sd": deviation, "pairs": pairs})
    if as_json:
        print(json.dumps({"runs": rows, "capacity": asdict(asked) | {"at_once": at_once}, "detectable": told}, indent=2))
        return
    for row in rows:
        print(f"{'done' if row['done'] else 'to go'}  {row['run']}")
    flops, tokens = (f"{x:.2g}" if x is not None else "an unknown number of" for x in (asked.flops, asked.tokens))
    print(f"\n{len(runs)} runs, {asked.runs} to go: {flops} FLOPs, {tokens} tokens")
    if asked.hours is not None:
        print(f"about {asked.hours:.2g} hours of runs, {asked.hours / at_once:.2g} with {at_once} at a time "
              f"({asked.measured} like finished ones here, {asked.runs - asked.measured} assumed: docs/scale.md)")  # fmt: skip
    for row in told:
        points = f"{100 * row['detectable']:.1f} points" if seeds > 1 else "nothing: one has no interval"
        source = f"measured on {row['pairs']} pairs of arms" if row["pairs"] else "the noise of decoding alone: at least"
        print(f"{row['task']}, {row['model']}: {seeds} seeds tell {points} of pass@1 ({source})")


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


@app.command()
def sweep(
    search: Annotated[Path, typer.Argument(help="a search, such as sweeps/search_grpo.toml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="change a setting")] = None,
    trials: Annotated[int, typer.Option(min=0, help="of each method; 0: as many as the file says")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="runs at a time; 0: cores divided by threads a run, or 1 on a GPU")] = 0,
    backend: Annotated[Where, typer.Option(help="this machine, or a Ray cluster whose nodes share the root")] = Where.local,
    address: Annotated[str | None, typer.Option(help="of the Ray cluster; without it RAY_ADDRESS, else one is started")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="sqlite:///FILE, postgresql://… or grpc://HOST:PORT; default: a file")
    ] = None,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Search each method's options with Optuna; then the best again, and tuned against default on test problems.

    The same command again, beside this one or after it, works on the same trials. Ctrl-C saves and stops.
    """
    from harness.comparison import resolve_device
    from harness.launch import forked
    from harness.search import Search

    check_backend(backend, address)
    asked = Search.load(search, [*(overrides or ()), *([f"trials={trials}"] if trials else [])])
    if find_spec("optuna") is None:
        raise BakeoffError("optuna is not installed; pip install 'bakeoff[optuna]'", MISSING)
    from harness import sweep

    at_once = workers or (1 if resolve_device(asked.device) == "cuda" else max(1, (os.cpu_count() or 1) // asked.threads))
    start = forked
    if backend is Where.ray:
        from harness.cluster import on_ray

        start, room = on_ray(address, asked.threads, resolve_device(asked.device))
        at_once = workers or room
    command = shlex.join(["bakeoff", "sweep", str(search), *(overrides or ())])
    outcome = sweep.sweep(asked, root, storage, at_once, command, start)
    if outcome.interrupted:
        raise BakeoffError("stopped; the same command continues", INTERRUPTED)
    shown(root, asked.name, as_json)
    if outcome.failed:
        raise typer.Exit(RUNS_FAILED)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def pretrain(
    model: Annotated[str, typer.Argument(help="a preset, such as dense; see bakeoff list models")],
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Pretrain a base model, once (it is cached under the hash of its recipe), and measure the room it leaves to learn."""
    from harness import files, models
    from harness.headroom import headroom
    from harness.launch import display, ensure_base

    if model not in models.presets():
        raise BakeoffError(f"no preset named {model!r}{meant(model, models.presets())}")
    recipe = models.presets()[model]
    with display() as show:
        folder = ensure_base(recipe, root, show)
    facts = files.read_json(folder / "pretrained.json")
    if as_json:
        print(json.dumps({"folder": str(folder), **facts, "tasks": list(headroom(folder, recipe.tasks))}, indent=2))
        return
    print(f"{folder}  {facts['parameters']:,} parameters, {facts['tokens']:,} tokens, {facts['seconds']:.0f} s")
    print(f"{'task':<12}{'chance':>8}{'pass@1':>8}{'pass@64':>9}")
    for row in headroom(folder, recipe.tasks):
        print(f"{row['task']:<12}{row['chance']:>8.4f}{row['pass@1']:>8.3f}{row['pass@64']:>9.3f}  {row['flag']}", flush=True)


@app.command()
def pack(
    name: Annotated[str, typer.Argument(help="the name of a comparison")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="where to (default: docs/results/NAME.jsonl.gz)")] = None,
    root: Root = Path(),
) -> None:
    """Write the finished runs of a comparison to one small file, without weights: to commit, or to continue elsewhere."""
    from harness.pack import pack

    output = output or Path("docs/results") / f"{name}.jsonl.gz"
    print(f"{pack(name, root, output)} runs in {output}, {output.stat().st_size / 1e6:.2f} MB")


@app.command()
def unpack(packed: Annotated[Path, typer.Argument(help="a file that bakeoff pack has written")], root: Root = Path()) -> None:
    """Put the runs of a packed comparison back, where they count as done: report them, or run what is missing."""
    from harness.pack import unpack

    name, runs = unpack(packed, root)
    print(f"{name}: {runs} runs unpacked; bakeoff report {name} shows them")


class Listed(StrEnum):
    methods = "methods"
    models = "models"
    tasks = "tasks"
    sweeps = "sweeps"
    runs = "runs"
    claims = "claims"
    tables = "tables"


@app.command(name="list")
def list_(what: Annotated[Listed, typer.Argument(help="what to list")], as_json: AsJson = False, root: Root = Path()) -> None:
    """What there is: methods with their data, reward and objective, models, tasks, sweeps, runs, styles of tables."""
    rows: list[dict[str, Any]] = LISTS[what](root)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        name, *rest = row.items()
        print(name[1])
        for key, value in rest:
            print(f"    {key:<15} {f'{value:,}' if isinstance(value, int) else value}")


def methods(_: Path) -> list[dict[str, Any]]:
    from dataclasses import fields

    from harness import plugins

    def options(cls: Any) -> str:
        return ", ".join(f"{f.name}={f.default}" for f in fields(cls) if f.init)

    found = {name: plugins.find("methods", name) for name in plugins.names("methods")}
    return [
        {"name": name, "data": m.data, "reward": m.reward, "objective": m.objective, "options": options(m)}
        for name, m in found.items()
    ]


def bases(root: Path) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from harness import models
    from harness.pretrain import character_tokenizer

    rows, tokenizer = list[dict[str, Any]](), character_tokenizer()
    for name, recipe in models.presets().items():
        folder = models.location(name, root)
        architecture = recipe.architecture or models.presets()[recipe.start].architecture
        rows.append(
            {
                "name": name,
                "summary": recipe.summary,
                **asdict(models.facts(models.new(architecture, tokenizer))),
                "cached": str(folder) if folder.exists() else "not yet",
            }
        )
    return rows


def tasks(_: Path) -> list[dict[str, Any]]:
    from harness import plugins

    found = [plugins.find("tasks", name) for name in plugins.names("tasks")]
    return [
        {"name": t.name, "summary": t.summary, "chance": t.chance, "example": f"{p.prompt}  {p.solution}"}
        for t in found
        for p in [t.problems("test")[0]]
    ]


def sweeps(_: Path) -> list[dict[str, Any]]:
    import tomllib

    return [
        {"name": str(path), "question": tomllib.loads(path.read_text(encoding="utf-8")).get("question", "")}
        for path in sorted(Path("sweeps").rglob("*.toml"))
    ]


def made(_: Path) -> list[dict[str, Any]]:
    import tomllib

    return [
        {"name": name, "text": claim.get("text"), "source": claim.get("source"), "sweep": str(path)}
        for path in sorted(Path("sweeps").rglob("*.toml"))
        for name, claim in tomllib.loads(path.read_text(encoding="utf-8")).get("claims", {}).items()
    ]


def runs(root: Path) -> list[dict[str, Any]]:
    from harness import files

    rows = list[dict[str, Any]]()
    for path in sorted((root / "runs").glob("*/config.json")):
        last = files.tail_jsonl(path.parent / "metrics.jsonl") or {}
        status = next((s for s in ("DONE", "FAILED") if (path.parent / s).exists()), "to go")
        rows.append({"name": path.parent.name, "status": status, "step": last.get("step", 0), "pass@1": last.get("test/pass@1")})
    return rows


def tables(_: Path) -> list[dict[str, Any]]:
    from reports.tables import sentences

    return [{"name": name, "shows": sentence} for name, sentence in sentences().items()]


LISTS = {
    Listed.methods: methods,
    Listed.models: bases,
    Listed.tasks: tasks,
    Listed.sweeps: sweeps,
    Listed.runs: runs,
    Listed.claims: made,
    Listed.tables: tables,
}


@app.command(name="lm-eval")
def lm_eval(
    policy: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="a run's name, a preset, or the path of a model folder")],
    tasks: Annotated[str, typer.Option(help="names with commas between: tasks of bakeoff's, of --include, or of lm-eval's own")],
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many problems of each task")] = None,
    include: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="a folder of lm-eval tasks in YAML files")
    ] = None,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Evaluate a run or a model with lm-eval, through bakeoff's own sampler; of a run, lm_eval.json keeps the scores."""
    if find_spec("lm_eval") is None:
        raise BakeoffError("lm-eval is not installed; pip install 'bakeoff[lm-eval]'", MISSING)
    from harness import stock

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise BakeoffError("--tasks names no task")
    results, folder = stock.lm_eval(policy, names, root, limit, include)
    if as_json:
        print(json.dumps(results, indent=2))
        return
    print(stock.text(results))
    if folder:
        print(f"kept in {folder / stock.RESULTS}")


@app.command()
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


@app.command()
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


def printable(text: str) -> str:
    """Model text without what a terminal would obey."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell put it in the background
    code = 0
    try:
        code = app(standalone_mode=False) or 0
    except BakeoffError as error:
        fail(str(error), error.code)
    except typer.Abort:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer carries its own copy of click's exceptions
            print(error)
            raise SystemExit(0) from None
        if isinstance(message := getattr(error, "format_message", None), Callable):
            fail(str(message()), 2)
        if type(error).__name__ == "ReportError":
            fail(str(error), 2)
        raise
    raise SystemExit(code)


def fail(message: str, code: int) -> None:
    print(f"bakeoff: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
