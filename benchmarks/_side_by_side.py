"""What the benchmarks share: alternation, ratios, the model, the machine, and the line of JSON.

Every side is measured once a round, and every other round goes backwards, so that a machine that slows down or is shared slows
all of them down. Sides are compared within a round, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness import models
from harness.environment import cpu, git
from harness.errors import MISSING

if TYPE_CHECKING:
    from harness.method import Method
    from harness.run import Run

PRESET = "dense"
TASK = "arithmetic"
LIBRARIES = ("torch", "transformers", "trl", "numpy")

Figures = Mapping[str, float]
Rounds = dict[str, list[float]]  # what was measured, a number a round


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; the module's docstring is the help."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", type=positive, default=5, metavar="N", help="rounds to measure (default: %(default)s)")
    made.add_argument("--threads", type=positive, default=2, metavar="N", help="threads of torch (default: %(default)s)")
    return made


def with_model(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the option that says where the base model is."""
    made.add_argument(
        "--root",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where bases/ is; without a pretrained base there (`bakeoff pretrain dense` makes one) weights are random: "
        "completions then end by chance, most of them at the limit, and only pretrained ones make the comparison realistic",
    )
    return made


def positive(text: str) -> int:
    if (n := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return n


def need(*libraries: str, group: str = "bench") -> None:
    """End with one line and exit code 4 where a library is missing."""
    for name in libraries:
        if find_spec(name) is None:
            print(f"{name} is not installed; get it with: pip install --group {group}", file=sys.stderr)
            raise SystemExit(MISSING)


def pretrained(presets: Sequence[str], root: Path) -> dict[str, Path]:
    """The folders of those that are pretrained under root; one line and exit code 4 where none is."""
    found = {name: folder for name in presets if (folder := models.location(name, root)).exists()}
    if not found:
        print(f"no pretrained base under {root}: make one with bakeoff pretrain {presets[0]}", file=sys.stderr)
        raise SystemExit(MISSING)
    return found


# measuring


def orders(names: Sequence[str], rounds: int) -> Iterator[tuple[str, ...]]:
    """A B, B A, A B …"""
    for n in range(rounds):
        yield tuple(names) if n % 2 == 0 else tuple(reversed(names))


def measure(sides: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, Rounds]:
    """What each side measures in each round, in alternating order; progress on stderr."""
    measured: dict[str, Rounds] = {name: {} for name in sides}
    for n, order in enumerate(orders(list(sides), rounds), start=1):
        for name in order:
            figures = sides[name]()
            for key, value in figures.items():
                measured[name].setdefault(key, []).append(value)
            shown = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items())
            print(f"round {n}/{rounds}  {name}: {shown}", file=sys.stderr, flush=True)
    return measured


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above/below of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> Figures:
    """Median, least and greatest of the rounds."""
    return {"median": rounded(statistics.median(values)), "min": rounded(min(values)), "max": rounded(max(values))}


def spreads(measured: Rounds) -> dict[str, Figures]:
    return {key: spread(values) for key, values in measured.items()}


def against(measured: Mapping[str, Rounds], key: str, more: bool = True) -> dict[str, Any]:
    """The first side against the second, and against the fastest of the others.

    more   whether more of `key` is better
    """
    ours, theirs, *_ = measured
    speeds = {name: rounds[key] if more else [1 / value for value in rounds[key]] for name, rounds in measured.items()}
    others = {name: rounds for name, rounds in measured.items() if name != ours}
    best = max(others, key=lambda name: statistics.median(speeds[name]))
    every = ratios(speeds[ours], speeds[theirs])
    return {
        "ratio": rounded(statistics.median(every)),
        "ratio_rounds": spread(every),
        "ratio_best": rounded(statistics.median(ratios(speeds[ours], speeds[best]))),
        "best": best,
        "ours": spreads(measured[ours]),
        "theirs": spreads(measured[theirs]),
        "tried": {name: spreads(rounds) for name, rounds in others.items()},
    }


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


# memory


def peak_mb() -> float:
    """The most memory this process has held. Linux hands `ru_maxrss` down from the parent, so there the kernel's own mark of the
    address space is read."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().split("\n"):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def child(*arguments: object) -> dict[str, Any]:
    """This command again with other arguments, in a process of its own: the JSON that it prints."""
    spec = sys.modules["__main__"].__spec__
    assert spec is not None
    command = [sys.executable, "-m", spec.name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


# what is run


@dataclass(frozen=True)
class Base:
    """The model of both sides."""

    folder: Path
    weights: str  # "pretrained" or "random"

    def facts(self) -> dict[str, Any]:
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        return {
            "preset": PRESET,
            "weights": self.weights,
            "architecture": config["architectures"][0],
            **{k: config[k] for k in shape},
        }


@contextmanager
def base(root: Path, threads: int) -> Generator[tuple[Base, Path]]:
    """The preset's pretrained weights under `root`, or random ones; and a folder to write to that is gone afterwards."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from harness.pretrain import character_tokenizer

    disable_progress_bar()
    torch.set_num_threads(threads)
    with TemporaryDirectory(prefix="bakeoff-benchmark-") as temporary:
        scratch = Path(temporary)
        if (folder := models.location(PRESET, root)).exists():
            yield Base(folder, "pretrained"), scratch
            return
        print(f"no pretrained base under {root}: the weights are random", file=sys.stderr)
        torch.manual_seed(0)
        tokenizer = character_tokenizer()
        models.new(models.presets()[PRESET].architecture, tokenizer).save_pretrained(scratch / "base")
        tokenizer.save_pretrained(scratch / "base")
        yield Base(scratch / "base", "random"), scratch


def open_run(base: Base, folder: Path, method: str, steps: int, limit: int, **options: Any) -> tuple[Run, Method[Any]]:
    """A Run and its method: the task of all benchmarks, next to nothing to evaluate."""
    from harness.comparison import Comparison, Evaluation
    from harness.meter import Budget
    from harness.run import Run
    from harness.tracker import NoTracker

    comparison = Comparison(
        name="benchmark",
        question="How fast?",
        methods={method: {"method": method, **options}},
        tasks=(TASK,),
        models=(str(base.folder),),
        seeds=(0,),
        budget=Budget(steps=steps),
        evaluation=Evaluation(points=1, validation_problems=1, validation_samples=1, test_problems=0, ood_problems=0),
        device="cpu",
    )
    (config,) = comparison.runs(folder)
    run = Run(config, folder, folder / "runs" / config.id, NoTracker())
    run.task = replace(run.task, max_new_tokens=limit)
    return run, config.build()


def trained(base: Base, scratch: Path, method: str, steps: int, limit: int, counter: str, **options: Any) -> tuple[float, int]:
    """Seconds, and tokens of that counter, of so many steps of `harness.train.train`: those after the first."""
    from harness import files
    from harness.train import train

    starts = list[float]()

    def clock() -> bool:
        starts.append(time.perf_counter())
        return False

    with TemporaryDirectory(dir=scratch) as folder:
        run, learner = open_run(base, Path(folder), method, steps + 2, limit, **options)
        train(learner, run, clock)
        counted = {row["step"]: row[f"budget/{counter}"] for row in files.read_jsonl(run.folder / "metrics.jsonl")}
    return starts[steps + 1] - starts[1], counted[steps + 1] - counted[1]


def stream(base: Base, folder: Path, n: int) -> list[Any]:
    """The first n problems that our run is given, in their order."""
    return open_run(base, folder, "sft", 1, 1)[0].problems(n)


# reporting


def busy_elsewhere() -> float:
    """Seconds of processor time that went to others, the host of a virtual machine among them, from an arbitrary start; nan
    where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


BEGUN = time.perf_counter(), busy_elsewhere()


def machine(threads: int) -> dict[str, Any]:
    """What it was measured on, and how busy others kept it since this process started: no ratio is worth much if they did."""
    cores = os.cpu_count() or 1
    others = (busy_elsewhere() - BEGUN[1]) / (time.perf_counter() - BEGUN[0]) / cores
    return {
        "cpu": cpu()["name"],
        "cores": cores,
        "flags": cpu()["flags"],
        "threads": threads,
        "used_by_others": None if math.isnan(others) else round(max(0.0, others), 3),
        "system": platform.system(),
    }


def versions() -> dict[str, str | None]:
    """Of Python, this checkout, and what is compared."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "commit": git("describe", "--always", "--dirty").strip() or None,
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def report(benchmark: str, threads: int, *, ratio: float, **facts: Any) -> None:
    """The one line on stdout."""
    line = {"benchmark": benchmark, "ratio": rounded(ratio), **facts, "machine": machine(threads), "versions": versions()}
    print(json.dumps(line, ensure_ascii=False), flush=True)
