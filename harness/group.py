"""Every run as several processes, through `accelerate launch`."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import files
from harness.comparison import RunConfig
from harness.errors import BUSY, RUNS_FAILED, BakeoffError
from harness.launch import Backend, Job, Start

PR_SET_PDEATHSIG = 1  # Linux: a signal for when the parent dies


def end_with_parent() -> None:
    """Called in the launcher: where the command is killed, its processes save and stop as after `terminate`."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Group:
    """The processes of one run, as one job."""

    def __init__(self, folder: Path, processes: int):
        self.folder, self.begun = folder, time.time()
        command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, "-m", "harness.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it as `terminate`, once
            preexec_fn=end_with_parent,
        )

    @property
    def exitcode(self) -> int | None:
        """The launcher's is 1 whatever went wrong; the run's folder says what did."""
        code = self.process.returncode
        if not code:
            return code
        failed = self.folder / "FAILED"
        if failed.exists() and failed.stat().st_mtime >= self.begun:
            return RUNS_FAILED
        try:
            with files.lock(self.folder / "lock", "running"):
                return code
        except BakeoffError:
            return BUSY

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def terminate(self) -> None:
        self.process.terminate()


def accelerated(processes: int) -> Backend:
    """Start every run through `accelerate launch`, as so many processes."""

    def backend(runs: Sequence[RunConfig], root: Path, name: str, mirror: bool) -> Start:  # noqa: ARG001
        def start(run: RunConfig) -> Job:
            return Group(root / "runs" / run.id, processes)

        return start

    return backend
