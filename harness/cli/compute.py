"""Commands that train or evaluate."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli._shared import AsJson, Root
from harness.cli.show import shown
from harness.errors import INTERRUPTED, MISSING, RUNS_FAILED, BakeoffError, meant

if TYPE_CHECKING:
    from harness.comparison import Comparison, RunConfig
    from harness.launch import Backend


class Where(StrEnum):
    local = "local"
    ray = "ray"


Workers = Annotated[int, typer.Option(min=0, help="runs at a time; 0: cores divided by threads a run, or 1 on a GPU")]
Place = Annotated[Where, typer.Option(help="this machine, or a Ray cluster whose nodes share the root")]
Address = Annotated[str | None, typer.Option(help="of the Ray cluster; without it RAY_ADDRESS, else one is started")]


def run(
    sweep: Annotated[Path, typer.Argument(help="a comparison, such as sweeps/quickstart.toml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="change a setting: seeds=[0,1] budget.flops=1e12 methods.grpo.beta=0.1"),
    ] = None,
    workers: Workers = 0,
    backend: Place = Where.local,
    address: Address = None,
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
    from harness.comparison import Comparison, read_table
    from harness.launch import launch
    from harness.shard import Shard

    overrides = overrides or []
    part = Shard.read(shard)
    check_backend(backend, address)
    if devices > 1 and backend is Where.ray:
        raise BakeoffError("--devices: a Ray task is one process; take --backend local, or fewer devices")
    if devices > 1 and find_spec("accelerate") is None:
        raise BakeoffError("accelerate is not installed; pip install 'bakeoff[devices]'", MISSING)
    comparison = Comparison.load(sweep, overrides)
    check_engine(comparison.engine)
    if comparison.claims:
        from reports.claims import read

        read(comparison.claims, str(sweep), {*read_table(sweep, []).get("methods", {}), *comparison.methods})
    if dry_run:
        _, at_once = placement(Where.local, None, workers, comparison.device, comparison.threads)
        planned(root, comparison, part.of_runs(comparison.runs(root)), at_once // devices, as_json)
        return
    command = shlex.join(["bakeoff", "run", str(sweep), *overrides])
    if wandb and find_spec("wandb") is None:
        print("wandb is not installed, so nothing is mirrored; pip install 'bakeoff[wandb]' or pass --no-wandb", file=sys.stderr)
        wandb = False
    placed, at_once = placement(backend, address, workers, comparison.device, comparison.threads)
    if devices > 1:
        from harness.group import accelerated

        placed, at_once = accelerated(devices), max(1, at_once // devices)
    source = files.toml(read_table(sweep, overrides)) if overrides else sweep.read_text(encoding="utf-8")
    runs, outcome = launch(comparison, root, source, command, at_once, fresh, wandb, part, placed)
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


def check_engine(engine: str) -> None:
    if engine == "vllm" and find_spec("vllm") is None:
        raise BakeoffError("engine: vLLM is not installed; docs/scale.md says how", MISSING)


def placement(backend: Where, address: str | None, workers: int, device: str, threads: int) -> tuple[Backend, int]:
    """How runs are started there, and how many at a time."""
    from harness.comparison import resolve_device
    from harness.launch import forked

    device = resolve_device(device)
    if backend is Where.ray:
        from harness.cluster import on_ray

        placed, room = on_ray(address, threads, device)
    else:
        placed, room = forked, 1 if device == "cuda" else max(1, (os.cpu_count() or 1) // threads)
    return placed, workers or room


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
        source = f"measured on {row['pairs']} pairs of arms" if row["pairs"] else "about, from decoding alone"
        can = (
            f"{seeds} seeds tell {100 * row['detectable']:.1f} points of pass@1 ({source})"
            if seeds > 1
            else "one seed has no interval"
        )
        print(f"{row['task']}, {row['model']}: {can}")


def sweep(
    search: Annotated[Path, typer.Argument(help="a search, such as sweeps/search_grpo.toml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="change a setting")] = None,
    trials: Annotated[int, typer.Option(min=0, help="of each method; 0: as many as the file says")] = 0,
    workers: Workers = 0,
    backend: Place = Where.local,
    address: Address = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="sqlite:///FILE, postgresql://… or grpc://HOST:PORT; default: a file")
    ] = None,
    as_json: AsJson = False,
    root: Root = Path(),
) -> None:
    """Search each method's options with Optuna; then the best again, and tuned against default on test problems.

    The same command again, beside this one or after it, works on the same trials. Ctrl-C saves and stops.
    """
    from harness.search import Search

    check_backend(backend, address)
    asked = Search.load(search, [*(overrides or ()), *([f"trials={trials}"] if trials else [])])
    check_engine(asked.engine)
    if find_spec("optuna") is None:
        raise BakeoffError("optuna is not installed; pip install 'bakeoff[optuna]'", MISSING)
    from harness import sweep

    placed, at_once = placement(backend, address, workers, asked.device, asked.threads)
    command = shlex.join(["bakeoff", "sweep", str(search), *(overrides or ())])
    outcome = sweep.sweep(asked, root, storage, at_once, command, placed)
    if outcome.interrupted:
        raise BakeoffError("stopped; the same command continues", INTERRUPTED)
    shown(root, asked.name, as_json)
    if outcome.failed:
        raise typer.Exit(RUNS_FAILED)


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
