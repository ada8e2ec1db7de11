"""Where a run happened: enough to know why two machines differ in the last digits."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("bakeoff", "torch", "transformers", "numpy", "tokenizers")


def environment(threads: int, device: str) -> dict[str, Any]:
    """What environment.json holds."""
    sandbox = sys.modules.get("harness.sandbox")  # there only if the task executes programs
    return {
        "git": git("rev-parse", "HEAD").strip() or None,
        "diff": hashlib.sha256(diff.encode()).hexdigest()[:12] if (diff := git("diff", "HEAD")) else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpu": cpu(),
        "device": device_name(device),
        "threads": threads,
        "sandbox": sandbox.level() if sandbox else None,
        "argv": typed(sys.argv),
    }


def typed(argv: Sequence[str]) -> list[str]:
    """The command, but for where the program and the root lie."""
    rest = list(argv[1:])
    if "--root" in rest:
        del rest[rest.index("--root") : rest.index("--root") + 2]
    return ["bakeoff", *(word for word in rest if not word.startswith("--root="))]


def git(*args: str) -> str:
    """What git says of the checkout this code runs from; nothing if there is none."""
    try:
        return subprocess.run(["git", "-C", str(HERE), *args], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cpu() -> dict[str, Any]:
    """The processor, and of its instruction sets those that change how torch multiplies."""
    info = Path("/proc/cpuinfo")
    fields = dict[str, str]()
    if info.exists():
        for line in info.read_text().split("\n"):
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "name": fields.get("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
    }


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device
