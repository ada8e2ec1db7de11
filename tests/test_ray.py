"""A Ray cluster of two nodes on this machine: the same numbers as the local backend, whatever happens to a node."""

import signal
import subprocess
import sys
import time

import pytest
from conftest import SMOKE, bakeoff, new_root, numbers, start, until

from harness import files
from harness.errors import INTERRUPTED, MISSING, USAGE, BakeoffError
from tests.searches import SEARCH

pytestmark = [pytest.mark.scale]

SWEEP = """
question = "What does a lost node cost?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0, 1]
budget = { steps = 150 }
device = "cpu"
evaluation = { points = 1, validation_problems = 4, validation_samples = 1, test_problems = 4, ood_problems = 0 }
methods.sft = { method = "sft", lr = 3e-3, prompts = 16 }
methods.more = { method = "sft", lr = 3e-3, prompts = 4, start = "sft" }
"""

STARTS = 3  # a node of Ray gives up where its agents are slow to say which ports they took; told them, it mostly does not
CLUSTER = """
import os, socket, sys
from contextlib import ExitStack
os.environ |= {"RAY_raylet_start_wait_time_s": "300", "RAY_gcs_server_request_timeout_seconds": "300"}
from ray.cluster_utils import Cluster
AGENTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
def node():
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in AGENTS]
    return {"num_cpus": 1, "include_dashboard": False, **dict(zip(AGENTS, ports, strict=True))}
cluster = Cluster(initialize_head=True, head_node_args=node())
second = cluster.add_node(**node())
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(second, allow_graceful=False)
        print("lost", flush=True)
cluster.shutdown()
"""


class TwoNodes:
    """In a process of its own: what Ray leaves running in this one would outlive the tests."""

    def __init__(self):
        for _ in range(STARTS):
            self.process = subprocess.Popen(
                [sys.executable, "-c", CLUSTER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if address := self.process.stdout.readline().strip():
                break
            self.close()
        assert address, "Ray's cluster of two nodes did not start"
        self.address = address

    def lose_a_node(self):
        print("lose", file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "lost\n"

    def close(self):
        self.process.communicate(timeout=120)


@pytest.fixture
def cluster():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bakeoff[ray]'")
    nodes = TwoNodes()
    yield nodes
    nodes.close()


def begun(root, rows):
    """Whether two runs have so many lines of metrics, and stand between two checkpoints."""
    return sum(len(files.read_jsonl(path)) > rows for path in (root / "runs").glob("*/metrics.jsonl")) == 2


def test_two_nodes_run_the_smoke_comparison_to_the_numbers_of_this_machine(cluster, smoke, pretrained, tmp_path):
    root = new_root(pretrained, tmp_path / "root")
    arguments = ("--backend", "ray", "--address", cluster.address, "--no-wandb", "--root", root)
    ended = bakeoff("run", SMOKE, "device=cpu", *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    here, there = ({p.name: numbers(p) for p in (at / "runs").iterdir()} for at in (smoke.root, root))
    assert there == here


def test_a_lost_node_costs_its_running_tasks_alone_and_no_number(cluster, pretrained, tmp_path):
    local, remote = (new_root(pretrained, tmp_path / name) for name in ("local", "remote"))
    for root in (local, remote):
        (root / "lost.toml").write_text(SWEEP)
    with start("run", "lost.toml", "--backend", "ray", "--address", cluster.address, "--no-wandb", cwd=remote) as driver:
        until(lambda: begun(remote, 30) or driver.poll() is not None, 280, "two runs to have taken thirty steps")
        started = {path: path.stat().st_mtime_ns for path in (remote / "runs").glob("*/environment.json")}
        assert len(started) == 2
        cluster.lose_a_node()
        _, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, err
    assert sum(path.stat().st_mtime_ns != then for path, then in started.items()) == 1
    assert bakeoff("run", "lost.toml", "--no-wandb", cwd=local).returncode == 0
    assert {p.name: numbers(p) for p in (remote / "runs").iterdir()} == {p.name: numbers(p) for p in (local / "runs").iterdir()}


def test_trials_run_as_tasks_to_the_numbers_of_this_machine(cluster, pretrained, tmp_path):
    (tmp_path / "small.toml").write_text(SEARCH.replace("trials = 3", "trials = 2"))
    found = []
    for name, where in (("local", ()), ("remote", ("--backend", "ray", "--address", cluster.address))):
        root = new_root(pretrained, tmp_path / name)
        ended = bakeoff("sweep", "small.toml", "device=cpu", "--workers", 2, *where, "--root", root, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        rows = files.read_jsonl(root / "comparisons" / "small" / "trials.jsonl")
        found.append([{k: row[k] for k in ("options", "state", "means", "seeds", "runs", "flops")} for row in rows])
    assert found[0] == found[1]


def test_control_c_saves_the_runs_of_all_nodes_and_the_same_command_continues(cluster, pretrained, tmp_path):
    root = new_root(pretrained, tmp_path / "root")
    (root / "lost.toml").write_text(SWEEP.replace("steps = 150", "steps = 800"))  # Ray takes a second or two to cancel a task
    arguments = ("run", "lost.toml", "--backend", "ray", "--address", cluster.address, "--no-wandb")
    with start(*arguments, cwd=root) as driver:
        until(lambda: begun(root, 30) or driver.poll() is not None, 280, "two runs to have taken thirty steps")
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=100)
    assert driver.returncode == INTERRUPTED, err
    rows = {p: files.read_jsonl(p) for p in (root / "runs").glob("*/metrics.jsonl") if p.stat().st_size}
    stopped = {path: recorded for path, recorded in rows.items() if not (path.parent / "DONE").exists()}
    assert stopped
    for path, recorded in stopped.items():
        assert files.read_json(path.parent / "checkpoint" / "state.json")["line"] == len(recorded)
    assert not list((root / "runs").glob("*/FAILED"))
    assert bakeoff(*arguments, cwd=root).returncode == 0
    assert all(files.read_jsonl(path)[: len(recorded)] == recorded for path, recorded in rows.items())


def test_an_address_of_the_environment_that_does_not_answer_is_said_within_seconds(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bakeoff[ray]'")
    from harness.cluster import on_ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(BakeoffError, match=r"--address 127\.0\.0\.1:1: .*refused"):
        on_ray(None, 1, "cpu")
    assert time.monotonic() - begun < 20


def test_a_cluster_that_does_not_answer_and_an_address_without_ray_are_refused_in_a_line(pretrained, tmp_path):
    root = new_root(pretrained, tmp_path / "root")
    (root / "lost.toml").write_text(SWEEP)
    misplaced = bakeoff("run", "lost.toml", "--address", "127.0.0.1:1", cwd=root)
    assert (misplaced.returncode, misplaced.stderr.count("\n")) == (USAGE, 1)
    assert "--backend ray" in misplaced.stderr
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'bakeoff[ray]'")
    nowhere = bakeoff("run", "lost.toml", "--backend", "ray", "--address", "127.0.0.1:1", "--no-wandb", cwd=root)
    assert nowhere.returncode == MISSING
    assert "127.0.0.1:1" in nowhere.stderr.splitlines()[-1]
    assert not (root / "runs").exists()
