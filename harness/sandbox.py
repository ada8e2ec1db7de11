"""Run model-written Python and get back what it returned.

One process, the zygote (`_zygote.py`), is started with an empty environment and forks a confined child per program. The
child gets the program and its inputs, and can only send values back; expected values stay here, and whoever calls
compares. What a program did is an Outcome; what the sandbox itself fails at is a SandboxError and never a verdict.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness import _zygote

Kind = Literal["ok", "syntax_error", "runtime_error", "timeout", "memory", "output_limit", "policy", "crash", "no_result"]

PATIENCE = 30.0  # seconds for what the sandbox itself has to do: starting, forking, reaping
LONGEST_CODE = 1 << 20  # characters
SELF_CHECK = """
def f(deed):
    import os
    try:
        os.fork() or os._exit(0) if deed == "seccomp" else os.listdir("/")
    except PermissionError:
        return True
    return False
"""


@dataclass(frozen=True)
class Limits:
    """What one program may use, for all its inputs together."""

    seconds: float = 1.0  # wall clock, from the moment the program is handed over
    memory_mb: int = 256  # MiB of address space beyond the interpreter's own
    output_bytes: int = 1 << 20  # of the values it returns, encoded


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    `runtime_error` includes a missing `f` and a value that is not made of exact builtin types; `policy` is a refusal
    by the sandbox that the program did not catch; `no_result` is an end, or garbage, in place of an answer.
    """

    kind: Kind
    values: tuple[object, ...] = ()  # what f returned for each input: None, bool, int, float, str, or containers
    detail: str = ""  # one printable line without paths of this machine


class SandboxError(RuntimeError):
    """The sandbox is broken: nothing is known about the program."""


class _Zygote:
    """The running zygote. Not for several threads at once."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.control, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryDirectory(prefix="bakeoff-") as nowhere:  # gone before the zygote has started
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(_zygote.__file__)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=nowhere,
                env={"PYTHONHASHSEED": "0"},  # the zygote empties it; -I would ignore it
                start_new_session=True,
            )
        try:
            self.control.settimeout(PATIENCE)
            (size,) = _zygote.HEADER.unpack(_zygote.receive(self.control, _zygote.HEADER.size))
            self.level = _zygote.receive(self.control, min(size, 300)).decode()
            if self.level.startswith("!"):
                raise SandboxError(f"the zygote cannot give up its rights: {self.level[1:]}")
            claims = [(claim,) for claim in ("landlock", "seccomp") if claim in self.level]
            check = self.run(SELF_CHECK, claims, Limits(seconds=PATIENCE))
            if check.values != (True,) * len(claims):
                raise SandboxError(f"the protection {self.level} does not hold: {check}")
        except BaseException:
            self.close()
            raise

    def run(self, code: str, inputs: Sequence[tuple[object, ...]], limits: Limits) -> Outcome:
        """One program in one child. Raises SandboxError, OSError or EOFError when the sandbox fails."""
        room = [1 << 30]
        request = {
            "code": code,
            "inputs": [_zygote.encode(i, room) for i in inputs],
            "output_bytes": limits.output_bytes,
        }
        data = json.dumps(request).encode()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                fork = _zygote.FORK.pack(limits.memory_mb, math.ceil(limits.seconds) + 1)
                socket.send_fds(self.control, [fork], [theirs.fileno()])
            ours.settimeout(PATIENCE)
            if ours.recv(1) != _zygote.READY:
                raise SandboxError("a child could not be confined")
            _zygote.say(ours, data)
            answer = _answer(ours, time.monotonic() + limits.seconds, limits.output_bytes)
            self.control.sendall(b".")
            (status,) = _zygote.STATUS.unpack(_zygote.receive(self.control, _zygote.STATUS.size))
        if answer is None:
            return Outcome("timeout", detail=f"still running after {limits.seconds:g} s")
        return _outcome(answer, len(inputs)) if answer else _ended(status)

    def close(self) -> None:
        """End the zygote and whatever it runs."""
        self.control.close()
        if self.pid != os.getpid():
            self.process.poll()
            return
        try:
            self.process.wait(1.0)  # it kills its child and leaves when its socket closes
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _answer(channel: socket.socket, deadline: float, limit: int) -> bytes | None:
    """The child's answer; empty when it ended or wrote something else, None when the deadline passed."""
    data, size = b"", _zygote.HEADER.size
    while len(data) < size:
        if (left := deadline - time.monotonic()) <= 0:
            return None
        channel.settimeout(left)
        try:
            more = channel.recv(1 << 16)
        except TimeoutError:
            return None
        except ConnectionError:
            return b""
        data += more
        if len(data) >= _zygote.HEADER.size:
            size = _zygote.HEADER.size + _zygote.HEADER.unpack_from(data)[0]
        if not more or size - _zygote.HEADER.size > limit:
            return b""
    return data[_zygote.HEADER.size : size]


def _outcome(answer: bytes, count: int) -> Outcome:
    """What the child says became of its program, believing nothing."""
    try:
        kind, result = json.loads(answer)
        if kind not in _zygote.SENT:
            raise ValueError("an unknown kind")
        if kind != "ok":
            return Outcome(kind, detail=_line(str(result)))
        values = tuple(_zygote.decode(value) for value in result)
        if len(values) != count:
            raise ValueError("another number of values")
        return Outcome("ok", values)
    except (ValueError, TypeError, LookupError, RecursionError):
        return Outcome("no_result", detail="the program sent something else than its values")


def _ended(status: int) -> Outcome:
    """A program that ended without an answer. `status` is what waitpid said."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return Outcome("timeout", detail="used up its CPU seconds")
    if code < 0 and code != -signal.SIGKILL:
        return Outcome("crash", detail=f"ended by signal {-code}")
    return Outcome("no_result", detail="the program ended, or closed its files, without returning")


def _line(text: str) -> str:
    """One short printable line, absolute folders left out."""
    text = re.sub(r"(?<!\w)/(?:[^\s/'\"]+/)+", "", text[:1000])
    return "".join(c if c.isprintable() else " " for c in text)[:200]


_lock = threading.RLock()
_current: _Zygote | None = None


def _zygote_running() -> _Zygote:
    global _current
    if _current is None:
        _current = _Zygote()
    return _current


def call(code: str, inputs: Sequence[tuple[object, ...]], limits: Limits = Limits()) -> Outcome:
    """Run `code`, an expression of x or a program that defines f, and call f on each input's arguments.

    Programs run one at a time, whatever the number of threads. Raises SandboxError when the sandbox failed twice, and
    ValueError for inputs that are not made of exact builtin types.
    """
    if len(code) > LONGEST_CODE:
        return Outcome("syntax_error", detail=f"longer than {LONGEST_CODE} characters")
    with _lock:
        for attempt in (1, 2):
            try:
                return _zygote_running().run(code, inputs, limits)
            except (OSError, EOFError, struct.error, SandboxError) as error:
                close()
                if attempt == 2:
                    raise SandboxError(f"the sandbox failed twice: {type(error).__name__}: {error}") from error
            except BaseException:
                close()
                raise
        raise AssertionError


def level() -> str:
    """Which protection the kernel gives and a first program has tested: "landlock+seccomp", one of them, or "rlimits".
    Raises SandboxError when the sandbox cannot start."""
    with _lock:
        try:
            return _zygote_running().level
        except (OSError, EOFError) as error:
            raise SandboxError(f"the sandbox does not start: {error}") from error


def close() -> None:
    """End the zygote; the next call starts another."""
    global _current
    with _lock:
        zygote, _current = _current, None
        if zygote:
            zygote.close()


def _forget() -> None:
    """In a forked process: its parent's zygote is not its own."""
    global _lock
    _lock = threading.RLock()
    close()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
