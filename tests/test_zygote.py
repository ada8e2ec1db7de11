"""The process that programs are forked from: what it is refused without, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from test_sandbox import children_of, confined, the_next_benign_program_passes_and_nothing_is_left, value_of, zygote

from harness import _zygote, sandbox
from harness.sandbox import Limits, Outcome, SandboxError, call

__all__ = ["the_next_benign_program_passes_and_nothing_is_left"]  # a fixture


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_a_program_that_leaves_a_thread_running_is_gone_when_it_has_answered() -> None:
    spin = "import threading\ndef g():\n    while True: pass\nthreading.Thread(target=g).start()\ndef f(x): return x"
    assert value_of(spin, 1) == 1
    assert children_of(zygote()) == []


def test_a_killed_zygote_is_replaced() -> None:
    first = zygote()
    os.kill(first, signal.SIGKILL)
    assert value_of("x", 5) == 5
    assert zygote() != first


@pytest.mark.slow
def test_a_zygote_killed_while_a_program_runs_takes_it_along() -> None:
    first, seen = zygote(), list[int]()

    def kill() -> None:
        time.sleep(0.2)
        seen.extend(children_of(first))
        os.kill(first, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert call("while True: pass", [(0,)], Limits(seconds=0.6)).kind == "timeout"
    killer.join()
    assert len(seen) == 1
    assert not running(seen[0])


def test_a_sandbox_that_cannot_start_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.close()
    monkeypatch.setattr(_zygote, "__file__", os.devnull)
    with pytest.raises(SandboxError, match="twice"):
        call("x", [(1,)])
    with pytest.raises(SandboxError, match="does not start"):
        sandbox.level()


@pytest.mark.slow
def test_a_zygote_that_answers_garbage_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox.close()
    fake = tmp_path / "fake.py"
    fake.write_text("import os, time\nos.write(0, b'\\0\\0\\0\\7rlimits' + b'\\xff' * 99)\ntime.sleep(0.5)")
    monkeypatch.setattr(_zygote, "__file__", str(fake))
    monkeypatch.setattr(sandbox, "PATIENCE", 0.3)
    with pytest.raises(SandboxError, match="twice"):
        call("x", [(1,)])


def test_a_zygote_whose_protection_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.close()
    monkeypatch.setattr(sandbox, "SELF_CHECK", "False")
    with pytest.raises(SandboxError, match=r"does not hold|twice"):
        call("x", [(1,)])


@pytest.mark.slow
@confined
@pytest.mark.parametrize(
    ("lacking", "level"),
    [("landlock_rules = lambda library: None", "seccomp"), ("seccomp_filter = lambda landlock: b''", "landlock"),
     ("landlock_rules = _zygote.seccomp_filter = lambda _: None", "rlimits")],
)  # fmt: skip
def test_a_lesser_kernel_gives_a_lower_level(lacking: str, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lesser = tmp_path / "lesser.py"
    root = str(Path(_zygote.__file__).parents[1])
    lesser.write_text(f"import sys\nsys.path.append({root!r})\nfrom harness import _zygote\n_zygote.{lacking}\n_zygote.main()")
    sandbox.close()
    monkeypatch.setattr(_zygote, "__file__", str(lesser))
    assert sandbox.level() == level
    assert value_of("x + 1", 2) == 3
    if level != "rlimits":
        assert call("open('written', 'w')", [(0,)]).kind == "policy"
    assert call("while True: pass", [(0,)], Limits(seconds=0.2)).kind == "timeout"
    monkeypatch.undo()
    sandbox.close()


def test_a_zygote_that_keeps_its_rights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = tmp_path / "refused.py"
    root = str(Path(_zygote.__file__).parents[1])
    refused.write_text(
        f"import os, sys\nsys.path.append({root!r})\nfrom harness import _zygote\n"
        "def fail(*ids): raise PermissionError('kept')\nos.geteuid = lambda: 0\nos.setgroups = fail\n_zygote.main()"
    )
    sandbox.close()
    monkeypatch.setattr(_zygote, "__file__", str(refused))
    with pytest.raises(SandboxError, match="cannot give up its rights: kept"):
        call("x", [(1,)])
    monkeypatch.undo()


def test_threads_take_turns() -> None:
    outcomes: dict[int, Outcome] = {}
    threads = [threading.Thread(target=lambda i=i: outcomes.update({i: call("x", [(i,)])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {i: Outcome("ok", (i,)) for i in range(8)}


def test_a_forked_process_starts_its_own_zygote() -> None:
    mine = zygote()
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            good = call("x", [(4,)]) == Outcome("ok", (4,)) and zygote() != mine
            sandbox.close()
            os.write(writer, b"y" if good else b"n")
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert answer.read() == b"y"
    os.waitpid(pid, 0)
    assert zygote() == mine


def test_the_zygote_works_in_a_folder_that_is_gone() -> None:
    assert str(Path(f"/proc/{zygote()}/cwd").readlink()).endswith(" (deleted)")
