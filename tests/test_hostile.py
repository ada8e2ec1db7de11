"""The list of hostile programs: each ends as it must, within its time, and touches nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_sandbox import SECRET, confined, secret_in_the_environment

from harness.sandbox import Limits, call

__all__ = ["secret_in_the_environment"]  # a fixture
HOSTILE = Path(__file__).parents[2] / "shared" / "conformance" / "hostile_code.jsonl"


def hostile() -> list[Any]:
    if not HOSTILE.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the hostile programs are not here"))]
    entries = [json.loads(line) for line in HOSTILE.read_text().split("\n") if line]
    return [pytest.param(entry, id=entry["id"]) for entry in entries]


@confined
@pytest.mark.slow
@pytest.mark.usefixtures("secret_in_the_environment")
@pytest.mark.parametrize("entry", hostile())
def test_the_hostile_list(entry: dict[str, Any], tmp_path: Path) -> None:
    task, must, limits = entry["task_io"], entry["must"], entry["limits"]
    if entry["danger"] == "host":
        pytest.skip("only for a disposable machine")
    if task["mode"] != "call":
        pytest.skip(f"{task['mode']} tasks are not supported")
    canary = tmp_path / "canary"
    canary.mkdir(mode=0o777)
    for name in ("secret.txt", "results.jsonl"):
        (canary / name).write_text(SECRET)
    before = {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in (canary, *canary.iterdir())}
    shared_memory = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set[Path]()
    expected = [eval(t["expected_py"]) if "expected_py" in t else t["expected"] for t in task["tests"]]

    started = time.monotonic()
    outcome = call(
        entry["code"].replace("@CANARY@", str(canary)),
        [tuple(test["args"]) for test in task["tests"]],
        Limits(limits["timeout_s"], limits["memory_mb"], limits["output_kb"] << 10),
    )
    assert time.monotonic() - started < must["max_wall_s"]

    passed = outcome.kind == "ok" and all(
        type(got) is type(want) and got == want for got, want in zip(outcome.values, expected, strict=True)
    )
    assert must["pass"] in (None, passed), outcome
    verdict = "pass" if passed else "wrong_answer" if outcome.kind == "ok" else outcome.kind
    assert verdict in must.get("verdict_in", [verdict]), outcome
    assert SECRET not in repr(outcome)
    assert {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in (canary, *canary.iterdir())} == before
    assert shared_memory == (set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set[Path]())
