"""What was asked, by its hash, and how many runs had finished when it was written down: comparisons/<name>/claims.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import files

DECIDES = ("claims", "methods", "tasks", "models", "bases", "base_per_seed", "budget", "evaluation")


def digest(asked: Mapping[str, Any]) -> str:
    """The hash of whatever of a comparison's file a verdict depends on; seeds may be computed in pieces."""
    chosen = {key: asked[key] for key in DECIDES if key in asked}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode()).hexdigest()


def register(folder: Path, asked: Mapping[str, Any], finished: int) -> None:
    """Write it down, unless the same was written down before."""
    path = folder / "claims.jsonl"
    if digest(asked) not in {row["digest"] for row in files.read_jsonl(path)}:
        files.Journal(path).append({"digest": digest(asked), "finished": finished})
