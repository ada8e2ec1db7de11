"""Run what is missing of a comparison: one process a run, several at a time, each resumable."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
import tomllib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness import files, models
from harness.comparison import Comparison, RunConfig
from harness.errors import BUSY, RUNS_FAILED, BakeoffError
from harness.models import Recipe
from harness.register import register
from harness.shard import Shard

POLL_SECONDS = 0.25
PRETRAINING_SECONDS = 3600.0  # how long another process may take to pretrain a base that both want
ORPHAN_SECONDS = 60.0  # how long a worker may take to notice that it was orphaned, and to save


@dataclass
class Outcome:
    """The runs of a comparison by how they stand."""

    done: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])
    killed: list[str] = field(default_factory=list[str])  # of those failed: their process ended without saying why
    interrupted: bool = False


class Job(Protocol):
    """A run under way, somewhere."""

    @property
    def exitcode(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def terminate(self) -> None:
        """Ask it to save and stop."""


Start = Callable[[RunConfig], Job]
Backend = Callable[[Sequence[RunConfig], Path, str, bool], Start]  # the runs to come, root, comparison, whether to mirror
Update = Callable[[float, str], None]  # (how much is done, a word on how it goes)


class Display(Protocol):
    def add(self, name: str, total: float) -> Update: ...
    def say(self, text: str) -> None: ...


class Bars:
    """Progress bars on a terminal."""

    def __init__(self, console: Console, progress: Progress):
        self.console, self.progress = console, progress

    def add(self, name: str, total: float) -> Update:
        bar: TaskID = self.progress.add_task(name, total=total, note="")

        def update(done: float, note: str) -> None:
            self.progress.update(bar, completed=done, note=note)
            if done >= total:
                self.progress.remove_task(bar)

        return update

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


class Lines:
    """A plain line now and then, where there is no terminal."""

    EVERY_SECONDS = 30.0

    def __init__(self, console: Console):
        self.console = console

    def add(self, name: str, total: float) -> Update:
        last = time.monotonic()

        def update(done: float, note: str) -> None:
            nonlocal last
            if time.monotonic() - last >= self.EVERY_SECONDS:
                last = time.monotonic()
                self.say(f"{name}: {min(1.0, done / total):.0%} {note}")

        return update

    def say(self, text: str) -> None:
        print(text, file=self.console.file, flush=True)


class Silent:
    """Nothing: for a process of several that somebody else speaks for."""

    def add(self, name: str, total: float) -> Update:  # noqa: ARG002
        return lambda _done, _note: None

    def say(self, text: str) -> None: ...


@contextmanager
def display() -> Generator[Display]:
    """Progress goes to stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as p:
        yield Bars(console, p)


def ensure_base(recipe: Recipe, root: Path, show: Display) -> Path:
    """The folder of a base model, pretrained now if nobody has yet."""
    folder = root / "bases" / recipe.id
    if folder.exists():
        return folder
    start = ensure_base(models.presets()[recipe.start], root, show) if recipe.start else None
    with files.lock(folder.with_suffix(".lock"), "pretraining", patience=PRETRAINING_SECONDS):
        if folder.exists():
            return folder
        from harness.pretrain import pretrain

        update = show.add(f"pretraining {folder.name}", recipe.steps)
        facts = pretrain(recipe, folder, lambda step, loss: update(step, f"loss {loss:.3f}"), start)
        show.say(f"pretrained {folder.name}: {facts['tokens']:,} tokens, loss {facts['loss']:.3f}, {facts['seconds']:.0f} s")
    return folder


def ensure_bases(recipes: Sequence[Recipe], root: Path, threads: int, show: Display) -> None:
    """Pretrain the bases that are missing, several at a time where each leaves some of the threads to others."""
    missing = list({recipe.id: recipe for recipe in recipes if not (root / "bases" / recipe.id).exists()}.values())
    for start in sorted({recipe.start for recipe in missing if recipe.start}):
        ensure_base(models.presets()[start], root, show)
    together = [recipe for recipe in missing if 2 * recipe.threads <= threads]
    for recipe in missing:
        if len(together) < 2 or recipe not in together:
            ensure_base(recipe, root, show)
    if len(together) < 2:
        return
    at_once = min(len(together), threads // max(recipe.threads for recipe in together))
    show.say(f"pretraining {len(together)} bases, {at_once} at a time")
    update = show.add("pretraining", len(together))
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("forkserver")) as pool:
        waiting = {pool.submit(ensure_base, recipe, root, Silent()): recipe for recipe in together}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                facts = files.read_json(future.result() / "pretrained.json")
                show.say(f"pretrained {waiting[future].id}: loss {facts['loss']:.3f}, {facts['seconds']:.0f} s")
                update(done, f"{done} of {len(together)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def forked(runs: Sequence[RunConfig], root: Path, name: str, mirror: bool) -> Start:
    """Processes of this machine, forked from a server that has the libraries imported."""
    context = multiprocessing.get_context("forkserver")
    kinds = {
        files.read_json(models.made(base, model, root) / "config.json")["model_type"]
        for base, model in {(run.base, run.model) for run in runs}
    }
    context.set_forkserver_preload(
        ["harness.worker", *(["wandb"] if mirror else []), *(f"transformers.models.{k}.modeling_{k}" for k in sorted(kinds))]
    )

    def start(run: RunConfig) -> Job:
        process = context.Process(target=_enter, args=(run, root, name, mirror), name=run.id)
        process.start()
        return process

    return start


def launch(
    comparison: Comparison,
    root: Path,
    source: str,
    command: str,
    workers: int,
    fresh: bool,
    mirror: bool,
    shard: Shard,
    backend: Backend = forked,
) -> tuple[list[RunConfig], Outcome]:
    """Write down what is asked, all of it, then run every run of the shard that is not done; those are returned.

    source   the comparison as TOML, overrides applied: what reports and claims read

    Raises BakeoffError if another process is at it.
    """
    asked = comparison.runs(root)
    runs = shard.of_runs(asked)
    folder = root / "comparisons" / comparison.name
    with files.lock(folder / shard.lock, "running this comparison"), display() as show:
        finished = sum(is_done(root, run) for run in asked)
        if fresh:
            forget([root / "runs" / run.id for run in runs])
        files.write(folder / "comparison.toml", f"{source.rstrip()}\n\n# asked by: {json.dumps(command)}\n")
        files.write(folder / "runs.txt", "".join(f"{run.id}\n" for run in asked))
        for run in asked:
            files.write_json(root / "runs" / run.id / "config.json", asdict(run))
        if comparison.claims:
            register(folder, tomllib.loads(source), finished)
        outcome = Outcome(done=[run.id for run in runs if is_done(root, run)])
        missing = [run for run in runs if run.id not in outcome.done]
        of = f" ({len(runs)} of {len(asked)} runs)" if len(runs) < len(asked) else ""
        show.say(f"{comparison.name}{of}: {len(outcome.done)} done, {len(missing)} to go")
        recipes = [comparison.recipe(run.model, run.seed) for run in missing]
        recipes += [models.presets().get(run.options[name]) for run in missing for name in run.others]
        ensure_bases([recipe for recipe in recipes if recipe], root, workers * comparison.threads, show)
        if missing:
            work(missing, root, workers, backend(missing, root, comparison.name, mirror), show, outcome)
    return runs, outcome


def forget(folders: Sequence[Path]) -> None:
    """Empty the folders of runs, once nobody is at work in any of them. Raises BakeoffError, nothing lost, if somebody stays."""
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(files.lock(folder / "lock", "running", patience=ORPHAN_SECONDS))
        for path in (path for folder in folders for path in folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()


def is_done(root: Path, run: RunConfig) -> bool:
    return (root / "runs" / run.id / "DONE").exists()


def work(missing: list[RunConfig], root: Path, workers: int, start: Start, show: Display, outcome: Outcome) -> None:
    """Run the missing runs, `workers` at a time."""
    waiting = list(missing)
    active = dict[str, tuple[Job, RunConfig, Update]]()
    held = set[str]()  # by other processes
    total = len(missing)

    def interrupt(number: int, frame: object) -> None:  # noqa: ARG001
        if not outcome.interrupted:
            show.say("stopping after the batch under way; the same command continues")
        outcome.interrupted = True
        for job, _, _ in active.values():
            job.terminate()

    handlers = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        while active or (waiting and not outcome.interrupted):
            while len(active) < workers and not outcome.interrupted and (run := ready(waiting, root, outcome, show)):
                active[run.id] = (start(run), run, show.add(run.id, 1.0))
            if waiting and not active and not outcome.interrupted:
                raise BakeoffError(
                    f"{waiting[0].id} waits for {waiting[0].start}, which has gone; the same command runs it again"
                )
            time.sleep(POLL_SECONDS)
            for run_id, (job, run, update) in list(active.items()):
                spent, note = progress(root, run)
                if job.is_alive():
                    update(min(spent, 0.999), note)
                    continue
                update(1.0, note)
                del active[run_id]
                if job.exitcode == BUSY:
                    waiting.append(run)
                    if run_id not in held:
                        held.add(run_id)
                        owner = files.owner(root / "runs" / run_id / "lock")
                        show.say(f"{run_id}: process {owner} is at it; waiting for that one")
                    continue
                settle(run, job.exitcode, root, outcome, show, f"[{total - len(waiting) - len(active)}/{total}]")
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)


def ready(waiting: list[RunConfig], root: Path, outcome: Outcome, show: Display) -> RunConfig | None:
    """Take out the first run whose start is there; one whose start has failed fails with it."""
    for run in list(waiting):
        if run.start in outcome.failed:
            waiting.remove(run)
            fail(root / "runs" / run.id, f"the run that it starts from failed: {run.start}")
            outcome.failed.append(run.id)
            show.say(f"{run.id}: FAILED: the run that it starts from failed")
        elif not run.start or (root / "runs" / run.start / "DONE").exists():
            waiting.remove(run)
            return run
    return None


def _enter(run: RunConfig, root: Path, name: str, mirror: bool) -> None:
    from harness import worker

    worker.main(run, root, name, mirror)


def settle(run: RunConfig, code: int | None, root: Path, outcome: Outcome, show: Display, count: str) -> None:
    """Book how a run ended and say so."""
    folder = root / "runs" / run.id
    if is_done(root, run):
        outcome.done.append(run.id)
        row = files.read_jsonl(folder / "metrics.jsonl")[-1]
        score = f"test pass@1 {row['test/pass@1']:.3f}, " if "test/pass@1" in row else ""
        seconds = row["budget/seconds"] + row["budget/eval_seconds"]
        show.say(f"{count} {run.id}: {score}{row['step']} steps, {seconds:.0f} s")
    elif not outcome.interrupted:
        if code != RUNS_FAILED:  # then the worker has not said why
            fail(folder, f"the process of this run ended with exit code {code}")
            outcome.killed.append(run.id)
        outcome.failed.append(run.id)
        show.say(f"{count} {run.id}: FAILED: {reason(folder)}")


def fail(folder: Path, why: str) -> None:
    """Write down why a run has failed, unless another process has it by now."""
    with suppress(BakeoffError), files.lock(folder / "lock", "running"):
        files.write(folder / "FAILED", f"{why}\n")


def reason(folder: Path) -> str:
    """Why a run has failed, in a line."""
    try:
        return (folder / "FAILED").read_text(encoding="utf-8").strip().split("\n")[-1]
    except FileNotFoundError:
        return "another process has taken it up again"


def progress(root: Path, run: RunConfig) -> tuple[float, str]:
    """The share of the budget that is spent, and a word on how it goes, from the run's last line."""
    row = files.tail_jsonl(root / "runs" / run.id / "metrics.jsonl")
    if row is None:
        return 0.0, "starting"
    spent = max(
        (row["step"] if name == "steps" else row[f"budget/{name}"]) / limit
        for name, limit in asdict(run.budget).items()
        if limit is not None
    )
    shown = [f"{name} {row[name]:.3f}" for name in ("reward", "loss", "eval/pass@1") if name in row]
    return spent, f"step {row['step']}" + (f", {shown[0]}" if shown else "")
