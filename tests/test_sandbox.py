"""Attacks on the sandbox, one property each, and what honest programs may rely on."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import sandbox
from harness.sandbox import Limits, Outcome, call

SECRET = "canary-SECRET-5f2c"
CONFINED = "+" in sandbox.level()
confined = pytest.mark.skipif(not CONFINED, reason="this kernel gives no landlock and seccomp")


@pytest.fixture(autouse=True)
def the_next_benign_program_passes_and_nothing_is_left() -> Iterator[None]:
    yield
    assert call("2*x+1", [(3,)]) == Outcome("ok", (7,))
    assert children_of(zygote()) == []


@pytest.fixture
def secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    sandbox.close()
    yield
    sandbox.close()


def zygote() -> int:
    sandbox.level()
    assert sandbox._current is not None
    return sandbox._current.process.pid


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def value_of(code: str, x: object = 0, limits: Limits | None = None) -> object:
    outcome = call(code, [(x,)], limits or Limits(seconds=5))
    assert outcome.kind == "ok", outcome
    return outcome.values[0]


def test_an_expression_of_x_is_called_on_each_input() -> None:
    assert call(" x**2 + 1 ", [(1,), (2,), (3,)]) == Outcome("ok", (2, 5, 10))


def test_a_program_that_defines_f_is_called_on_each_input() -> None:
    assert call("def f(a, b=2):\n\treturn a * b\n", [(1,), (3, 4)]) == Outcome("ok", (2, 12))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("syntax_error", "def f(x) return x"),
        ("syntax_error", "x = '\ud800'"),
        ("syntax_error", "x\0"),
        ("syntax_error", "1" + " " * (1 << 20)),
        ("runtime_error", "1/0"),
        ("runtime_error", "def g(x): return x"),
        ("runtime_error", ""),
        ("runtime_error", "raise KeyboardInterrupt"),
        ("runtime_error", "def f(x): raise SystemExit(0)"),
        ("runtime_error", "def f(x): return f(x)"),
        ("runtime_error", "def f(x): return input()"),
        ("runtime_error", "10**4300"),
        ("runtime_error", "def f(n):\n x = []\n x.append(x)\n return x"),
        ("runtime_error", "class E(Exception):\n def __str__(self): 1/0\ndef f(x): raise E"),
        ("timeout", "while True: pass"),
        ("timeout", "import time\ntime.sleep(10**6)"),
        ("timeout", "sum(range(10**18))"),
        ("memory", "bytearray(8 * 2**30)"),
        ("output_limit", "'x' * (1 << 20)"),
        ("output_limit", "'\\x01' * (1 << 19)"),
        ("output_limit", "def f(n):\n x = []\n for _ in range(40): x = [x, x]\n return x"),
        ("output_limit", "{*range(10001)}"),
        ("crash", "import ctypes\nctypes.string_at(0)"),
        ("crash", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nwhile True: pass"),
        ("no_result", "import os\nos._exit(0)"),
        ("no_result", "import os\nos.closerange(0, 1024)\ndef f(x): return x"),
    ],
)
def test_each_way_to_fail_has_its_kind(kind: str, code: str) -> None:
    outcome = call(code, [(3,)], Limits(seconds=0.3 if kind == "timeout" else 5, memory_mb=64))
    assert (outcome.kind, outcome.values) == (kind, ()), outcome
    assert len(outcome.detail) <= 300
    assert outcome.detail.isprintable()


@confined
@pytest.mark.parametrize(
    "deed",
    [
        "os.fork()",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 9)",
        "os.kill(os.getpid(), 19)",
        "os.listdir('/')",
        "open('/etc/passwd')",
        "open('written', 'w')",
        "os.mkdir('made')",
        "os.chmod('.', 0)",
        "os.utime('.', (0, 0))",
        "os.setxattr('.', 'user.a', b'')",
        "os.setuid(0)",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(os.getppid(), {0})",
        "os.setsid()",
        "os.memfd_create('m')",
        "os.mkfifo('p')",
        "os.pidfd_open(os.getppid())",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    ],
)
def test_what_the_sandbox_forbids_is_a_policy_violation(deed: str) -> None:
    outcome = call(f"import os, socket, subprocess, fcntl, resource\ndef f(x):\n    {deed}", [(0,)])
    assert outcome.kind == "policy", outcome


def test_limits_cannot_be_raised() -> None:
    code = "import resource\ndef f(x): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))"
    assert call(code, [(0,)]).kind in ("policy", "runtime_error")


def test_a_kernel_with_seccomp_is_used() -> None:
    status = Path("/proc/self/status")
    if not status.exists() or "Seccomp:" not in status.read_text() or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("this kernel has no seccomp filter")
    assert "seccomp" in sandbox.level()


def test_never_as_root() -> None:
    assert value_of("import os\ndef f(x): return os.getuid() * os.geteuid() * os.getgid()") != 0


@pytest.mark.usefixtures("secret_in_the_environment")
def test_the_environment_is_empty() -> None:
    assert value_of("import os\ndef f(x): return dict(os.environ)") == {}
    assert SECRET not in Path(f"/proc/{zygote()}/environ").read_text()


@confined
@pytest.mark.usefixtures("secret_in_the_environment")
def test_the_environment_of_this_process_cannot_be_read() -> None:
    code = "def f(pid):\n try: return open(f'/proc/{pid}/environ').read()\n except OSError as e: return type(e).__name__"
    for pid in (os.getpid(), zygote(), "self"):
        assert value_of(code, pid) == "PermissionError"


@confined
def test_files_outside_cannot_be_read_written_changed_or_removed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    canary = tmp_path / "secret.txt"
    canary.write_text(SECRET)
    canary.chmod(0o666)
    before = canary.stat()
    code = """
import os, shutil
def f(path):
    caught = 0
    for deed in (lambda: open(path).read(), lambda: open(path, "a"), lambda: os.remove(path), lambda: os.chmod(path, 0),
                 lambda: os.utime(path, (0, 0)), lambda: os.rename(path, path + "2"), lambda: os.link(path, path + "3"),
                 lambda: os.truncate(path, 0), lambda: os.symlink(path, path + "4"), lambda: shutil.rmtree(path[:-10])):
        try: deed()
        except OSError: caught += 1
    return caught"""
    assert value_of(code, str(canary)) == 10
    assert list(tmp_path.iterdir()) == [canary]
    assert canary.read_text() == SECRET
    assert (canary.stat().st_mode, canary.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@confined
def test_a_listener_hears_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0canary-{os.getpid()}")
        abstract.listen()
        code = "import socket\ndef f(address): socket.create_connection(tuple(address), timeout=1)"
        assert call(code, [(["127.0.0.1", tcp.getsockname()[1]],)]).kind == "policy"
        code = "import socket\ndef f(address): socket.socket(socket.AF_UNIX).connect(address)"
        assert call(code, [(f"\0canary-{os.getpid()}",)]).kind == "policy"
        for listener in (tcp, abstract):
            listener.settimeout(0.05)
            with pytest.raises(TimeoutError):
                listener.accept()


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**53, -(2**53), 2**14284 - 1, -(10**4299), 0.0, -0.0, 1.0, 1e308, math.inf,
    "", "é\u202e\n\0",
    [], (), set[int](), frozenset[int](), {}, [1, True, 1.0], (1, [2, (3, {4})]),
    {1: "a", "1": "b", None: 2, (1, 2): [3]},
    {"int": "0x1"}, {"dict": []}, {frozenset({1, (2, 3)})}, [[["x"] * 3] * 3] * 3,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_come_back_exactly(value: object) -> None:
    assert repr(value_of("x", value)) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(value_of("float('nan')"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    ["type('E', (), {'__eq__': lambda s, o: True})()", "type('L', (list,), {'__eq__': lambda s, o: True})()",
     "type('I', (int,), {})(7)", "[{'k': type('S', (str,), {})('a')}]", "len", "b''", "1j", "'\\ud800'"],
)  # fmt: skip
def test_only_exact_builtin_types_are_values(value: str) -> None:
    assert call(value, [(0,)]).kind == "runtime_error"


@pytest.mark.parametrize(
    "answer",
    [b"", b"\0", b"{}", b"[]", b"null", b'["ok"]', b'["ok", 1]', b'["ok", []]', b'["ok", [1, 2]]', b'["timeout", ""]',
     b'["ok", [{"set": [[1]]}]]', b'["ok", [{"int": 3}]]', b'["ok", [{"x": 1}]]', b'["ok", [{}]]',
     b'["ok", [{"dict": [1]}]]',
     b'["ok", ["\\ud800"]]', b"[" * 10**5, b'["ok", [' + b"[" * 200 + b"]" * 200 + b"]]", b"9" * 5000,
     b'["ok", [' + b"9" * 4400 + b"]]", b'["ok", [{"set": [' + b"0," * 20000 + b"0]}]]", b'[["ok"], [1]]'],
    ids=lambda answer: repr(answer[:20]),
)  # fmt: skip
def test_a_forged_answer_is_no_result(answer: bytes) -> None:
    assert sandbox._outcome(answer, 1).kind == "no_result"


@pytest.mark.parametrize("frame", [b"passed\n", b"\xff" * 8, b"\0\0\0\4true", b"\0\0\0\2{}garbage", b"\0\0"])
def test_writing_on_every_descriptor_is_no_result(frame: bytes) -> None:
    code = f"import os\nfor fd in range(3, 64):\n try: os.write(fd, {frame!r})\n except OSError: pass\nos._exit(0)"
    assert call(code, [(3,)]).kind == "no_result"


def test_detail_is_short_and_names_no_folder_of_this_machine() -> None:
    outcome = call("from math import nothing", [(0,)])
    assert outcome.detail.startswith("ImportError: cannot import name 'nothing'")
    assert "/" not in outcome.detail
    outcome = call("def f(x): raise ValueError('x\\n\\x1b[31m\\u202e' * 10**6)", [(0,)])
    assert len(outcome.detail) <= 300
    assert outcome.detail.isprintable()


HONEST = {
    "dataclasses": """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class P:
    a: int
def f(x): return P(x).a""",
    "threads": """
import threading
def f(x):
    out = []
    ts = [threading.Thread(target=lambda i=i: out.append(i)) for i in range(8)]
    [t.start() for t in ts]; [t.join() for t in ts]
    return x * len(out) // 8""",
    "executor": """
from concurrent.futures import ThreadPoolExecutor
def f(x):
    with ThreadPoolExecutor(4) as pool: return sum(pool.map(int, [x, 0, 0]))""",
    "asyncio": """
import asyncio
async def g(x):
    await asyncio.sleep(0.001); return x
def f(x): return asyncio.run(g(x))""",
    "deep recursion": """
import sys
sys.setrecursionlimit(20000)
def r(n): return 0 if n == 0 else 1 + r(n - 1)
def f(x): return x + r(9000) * 0""",
    "sys.exit after the definitions": "import sys\ndef f(x): return x\nsys.exit()",
    "exit without site": "def f(x): return x\nexit()",
    "standard input is empty": "import sys\ndef f(x): return x if sys.stdin.buffer.read() == b'' else None",
    "printing": "import sys\ndef f(x):\n    print('a' * 10**6); sys.stderr.write('b'); return x",
    "a module not loaded before": "import colorsys, xml.dom.minidom, zoneinfo, sqlite3\ndef f(x): return x",
    "the null device": "import os\ndef f(x):\n    with open(os.devnull, 'w') as n: n.write('a')\n    return x",
    "patched builtins": "import builtins\nbuiltins.print = None\nlen = list = str = None\ndef f(x): return x",
    "a thread left over": """
import threading, time
threading.Thread(target=lambda: time.sleep(99)).start()
def f(x): return x""",
    "an exit handler": "import atexit, time\natexit.register(lambda: time.sleep(99))\ndef f(x): return x",
    "a class with state": "class A:\n    n = 0\ndef f(x):\n    A.n += 1\n    return x + A.n - 1",
}


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST.keys())
def test_honest_programs_work(code: str) -> None:
    assert call(code, [(7,)], Limits(seconds=5)) == Outcome("ok", (7,))


def test_inputs_are_fresh_for_each_call_and_changing_them_stays_in_the_child() -> None:
    shared = [3, 1, 2]
    assert call("def f(x):\n    x.sort()\n    return x[0]", [(shared,), (shared,)]) == Outcome("ok", (1, 1))
    assert call("def f(x):\n    x.append(3)\n    return x", [(shared,), (shared,)]).values == ([3, 1, 2, 3],) * 2
    assert shared == [3, 1, 2]


def test_nothing_stays_from_one_program_to_the_next() -> None:
    assert value_of("import math, builtins\nmath.pi = builtins.left = 3\ndef f(x): return math.pi") == 3
    assert value_of("import math, builtins\ndef f(x): return hasattr(builtins, 'left'), math.pi") == (False, math.pi)


def test_a_program_gets_the_same_verdict_every_time() -> None:
    code = "import random\ndef f(x): return ','.join({'a', 'b', 'c', 'd', 'e'}), random.random()"
    first = value_of(code)
    sandbox.close()
    assert value_of(code) == first


def test_inputs_that_are_no_values_are_the_callers_error() -> None:
    with pytest.raises(ValueError, match="type object"):
        call("x", [(object(),)])
