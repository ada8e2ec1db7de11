"""Two processes on one study in PostgreSQL, and behind a gRPC proxy; each test starts the server that it asks."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.searches import SEARCH, shared_out

PROGRAMS = Path(shutil.which("initdb") or next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), "/")).resolve().parent
OWNER = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(program, *args):
    subprocess.run([PROGRAMS / program, *map(str, args)], check=True, user=OWNER, cwd="/", stdout=subprocess.DEVNULL, timeout=120)


@pytest.fixture
def server():
    """The URL of an empty database."""
    if not (PROGRAMS / "pg_ctl").exists():
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="bakeoff-postgres-") as folder:  # pytest's own folder is closed to the server's user
        if OWNER:
            shutil.chown(folder, OWNER)
        port, kept = free_port(), f"{folder}/data"
        run("initdb", "--pgdata", kept, "--username", "bakeoff", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "--pgdata", kept, "--log", f"{folder}/log", "--options", options, "--wait", "start")
        yield f"postgresql://bakeoff@127.0.0.1:{port}/postgres"
        run("pg_ctl", "--pgdata", kept, "--mode", "immediate", "stop")


@pytest.mark.slow
def test_two_processes_share_the_trials_of_a_database(server, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SEARCH.replace("trials = 3", "trials = 12"))
    shared_out(file, tmp_path / "root", server)


SERVE = """
import sys, warnings
import optuna
from optuna.storages import run_grpc_proxy_server
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
run_grpc_proxy_server(optuna.storages.RDBStorage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def proxy(tmp_path):
    """The address of a proxy before an empty SQLite file."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVE, f"sqlite:///{tmp_path}/trials.db", str(port)]) as process:
        yield f"grpc://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.slow
def test_two_processes_share_the_trials_behind_a_proxy(proxy, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SEARCH.replace("trials = 3", "trials = 12"))
    shared_out(file, tmp_path / "root", proxy)
