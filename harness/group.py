"""Every run as several processes, through `accelerate launch`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.comparison import RunConfig
from harness.launch import Backend, Job, Start


class Group:
    """The processes of one run, as one job."""

    def __init__(self, folder: Path, processes: int):
        command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, "-m", "harness.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it as `terminate`, once
        )

    @property
    def exitcode(self) -> int | None:
        return self.process.returncode

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
