"""Runs as tasks on a Ray cluster whose nodes share the root: one task a run, of as many CPUs as the run has threads.

A task whose node is lost is started again on another one, where the run continues from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, TaskCancelledError

from harness.comparison import RunConfig
from harness.errors import INTERRUPTED, MISSING, RUNS_FAILED, BakeoffError
from harness.launch import POLL_SECONDS, Backend, Job, Start, fail, forked

ANSWER_SECONDS = 20.0  # that a cluster may take
RETRIES = 3  # of a run, after its node or the process on it was lost


def on_ray(address: str | None, threads: int, device: str) -> tuple[Backend, int]:
    """Connect to a cluster, or start one here; how runs are started on it, and how many it has room for.

    Raises BakeoffError if no cluster answers, or none of its nodes can take a run.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:  # ray.init() would ask for minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        why = str(error).strip().split("\n")[0].rstrip(".")
        raise BakeoffError(f"--address {address}: {why}; start a cluster with ray start --head", MISSING) from None
    needs = {"CPU": threads} | ({"GPU": 1} if device == "cuda" else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(resources.get(kind, 0) // n for kind, n in needs.items())) for resources in nodes)
    if room == 0:
        wanted = " and ".join(f"{n} {kind}" for kind, n in needs.items())
        raise BakeoffError(f"no node of the Ray cluster has {wanted}, which is what a run takes", MISSING)

    def backend(runs: Sequence[RunConfig], root: Path, name: str, mirror: bool) -> Start:  # noqa: ARG001
        task: Any = ray.remote(num_cpus=threads, num_gpus=needs.get("GPU", 0), max_retries=RETRIES)(entered)
        shared = root.resolve()

        def start(run: RunConfig) -> Job:
            return Task(shared / "runs" / run.id, task.options(name=run.id).remote(run, shared, name, mirror))

        return start

    return backend, room


@dataclass
class Task:
    """A run as the driver sees it."""

    folder: Path
    result: Any  # ray's reference to the exit code

    def is_alive(self) -> bool:
        return not ray.wait([self.result], timeout=0)[0]

    def terminate(self) -> None:
        ray.cancel(self.result)

    @property
    def exitcode(self) -> int | None:
        try:
            return ray.get(self.result)
        except TaskCancelledError:
            return INTERRUPTED
        except RayError as error:
            fail(self.folder, str(error).strip())
            return RUNS_FAILED


def entered(run: RunConfig, root: Path, name: str, mirror: bool) -> int | None:
    """On the node: the run in a process of its own, which saves and stops when the task is cancelled or its worker dies."""
    if not (root / "runs" / run.id / "config.json").exists():
        raise BakeoffError(f"{socket.gethostname()} does not see {root}: the root must be a folder that all nodes share")
    job: Any = forked([run], root, name, mirror)(run)
    try:
        while job.is_alive():
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        job.terminate()
        job.join()
    return job.exitcode
