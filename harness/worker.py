"""One run in one process: from a RunConfig to DONE or FAILED."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import parent_process
from pathlib import Path
from typing import NoReturn

import torch

from harness import devices, files, models
from harness.comparison import RunConfig
from harness.environment import environment
from harness.errors import BUSY, INTERRUPTED, MISSING, RUNS_FAILED, BakeoffError
from harness.parse import validated
from harness.run import Run
from harness.tracker import NoTracker, WandbTracker
from harness.train import Interrupted, train

PATIENCE_SECONDS = 2.0  # with another process that has the run, before the worker turns to one that nobody has


def main(config: RunConfig, root: Path, comparison: str, mirror: bool) -> NoReturn:
    """Start or continue the run in its directory and exit with a code.

    SIGINT, SIGTERM and the death of the parent end the run after the batch under way, with a checkpoint.
    """
    asked = list[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: asked.append(n))
    parent = parent_process()

    def stop() -> bool:
        return bool(asked) or (parent is not None and not parent.is_alive())

    folder = root / "runs" / config.id
    with ExitStack() as held:
        try:
            if devices.rank() == 0:
                held.enter_context(files.lock(folder / "lock", "running", patience=PATIENCE_SECONDS))
        except BakeoffError:
            raise SystemExit(BUSY) from None
        folder = devices.written(folder, held)
        raise SystemExit(0 if (folder / "DONE").exists() else execute(config, root, folder, comparison, mirror, stop))


def execute(config: RunConfig, root: Path, folder: Path, comparison: str, mirror: bool, stop: Callable[[], bool]) -> int:
    torch.set_num_threads(config.threads)
    (folder / "FAILED").unlink(missing_ok=True)
    tracker = WandbTracker(config, folder, comparison) if mirror else NoTracker()
    ok = False
    try:
        run = Run(config, root, folder, tracker)
        if run.vllm and devices.count() > 1:
            raise BakeoffError('engine = "vllm" samples on the device of one process; train on one device')
        if run.vllm and run.policy.routed:
            raise BakeoffError('engine = "vllm" keeps old weights of experts; sample from a mixture with engine = "own"')
        if run.policy.routed and devices.count() > 1:
            raise BakeoffError("a mixture of experts is balanced by the whole batch; train it on one device")
        base = models.made(config.base, config.model, root)
        files.write_json(folder / "environment.json", environment(config.threads, config.device))
        files.write_json(folder / "base.json", {**models.pretraining(base), **asdict(models.facts(run.policy.model))})
        method = config.build()
        files.write_json(folder / "card.json", method.card())
        train(method, run, stop)
        run.done()
        ok = True
    except Interrupted:
        return INTERRUPTED
    except BakeoffError as error:
        files.write(folder / "FAILED", f"{type(error).__name__}: {error}\n")
    except Exception:
        files.write(folder / "FAILED", traceback.format_exc())
    finally:
        tracker.finish(ok)
    return 0 if ok else RUNS_FAILED


def entered(folder: Path) -> NoReturn:
    """As one of the processes that `accelerate launch -m harness.worker runs/RUN` starts."""
    path = folder / "config.json"
    try:
        if not path.is_file():
            raise BakeoffError(f"{folder} is not a run: it has no config.json; bakeoff run writes it", MISSING)
        config = validated(RunConfig, files.read_json(path), str(path))
        devices.join(config.device)
    except BakeoffError as error:
        print(f"bakeoff: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    main(config, folder.resolve().parents[1], "", False)


if __name__ == "__main__":
    entered(Path(sys.argv[1]))
