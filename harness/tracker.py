"""A mirror of metrics.jsonl for people who watch dashboards. It is never read back, and its failure never ends a run."""

from __future__ import annotations

import netrc
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness import files

if TYPE_CHECKING:
    from harness.comparison import RunConfig


class Tracker(Protocol):
    def log(self, row: Mapping[str, float]) -> None: ...
    def finish(self, ok: bool) -> None: ...


class NoTracker:
    def log(self, row: Mapping[str, float]) -> None: ...
    def finish(self, ok: bool) -> None: ...


class WandbTracker:
    """Weights & Biases: group = comparison, job type = method, config = the run's.

    Offline unless the user has logged in (or WANDB_MODE says otherwise). Rows carry their own `step`; wandb's internal step
    is never set, because it drops what arrives out of order. A resumed run writes its mirror anew from the first line.
    """

    def __init__(self, config: RunConfig, folder: Path, comparison: str):
        self.folder = folder
        self._run: Any = None
        self._guard(lambda: self._start(config, comparison))

    def _start(self, config: RunConfig, comparison: str) -> None:
        import wandb

        shutil.rmtree(self.folder / "wandb", ignore_errors=True)
        self._run = wandb.init(
            project="bakeoff",
            group=comparison,
            job_type=config.method,
            name=config.id,
            id=config.id,
            config=asdict(config),
            dir=self.folder,
            mode=None if "WANDB_MODE" in os.environ else "online" if logged_in() else "offline",  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            warnings.warn(
                f"W&B mirror stopped: {str(error).split(chr(10))[0]}; metrics.jsonl goes on", RuntimeWarning, stacklevel=3
            )
            self._run = None

    def log(self, row: Mapping[str, float]) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.log(dict(row)))

    def finish(self, ok: bool) -> None:
        if self._run is not None:
            self._guard(lambda: self._finish(ok))

    def _finish(self, ok: bool) -> None:
        import wandb

        shown = files.read_jsonl(self.folder / "samples.jsonl")[-64:]
        names: list[Any] = ["step", "prompt", "completion", "answer", "reward", "reason"]
        if shown:
            self._run.log({"samples": wandb.Table(columns=names, data=[[row[n] for n in names] for row in shown])})
        self._run.finish(exit_code=0 if ok else 1)


def logged_in() -> bool:
    """Whether the user has given W&B a key, in the environment or with `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
