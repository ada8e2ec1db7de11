"""Whether a base leaves room to learn: a comparison on a base that knows everything, or nothing, says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any

from harness import models, plugins
from harness.evaluate import mean
from harness.generate import generate
from harness.judging import judged
from harness.policy import Policy
from harness.task import Task

BAND = (0.15, 0.45)  # of pass@1
TIMES_CHANCE = 2
CEILING = 0.97  # of pass@64
PROBLEMS, SAMPLES = 64, 128


def headroom(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """For each task: pass@1 and pass@64 of the base on validation problems, and what is wrong with them, if anything."""
    model, tokenizer = models.load(folder)
    policy = Policy(model).frozen()
    for name in dict.fromkeys(names):
        task: Task = plugins.find("tasks", name)
        right = correct(task, policy, tokenizer)
        row = {
            "task": name,
            "chance": task.chance,
            "pass@1": mean(c / SAMPLES for c in right),
            "pass@64": mean(1 - comb(SAMPLES - c, 64) / comb(SAMPLES, 64) for c in right),
        }
        yield row | {"flag": flag(row)}


def correct(task: Task, policy: Policy, tokenizer: Any) -> list[int]:
    """How many of SAMPLES completions of each problem are right."""
    problems = task.problems("validation")[:PROBLEMS]
    prompts = [tokenizer(p.prompt)["input_ids"] for p in problems]
    keys = [f"headroom/{p.id}/{k}" for p in problems for k in range(SAMPLES)]
    limits = task.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id
    asked = [p for p in problems for _ in range(SAMPLES)]
    _, _, verdicts = judged(task, asked, tokenizer, lambda heard: generate(policy, prompts, SAMPLES, keys, *limits, heard))
    return [sum(v.correct for v in verdicts[i : i + SAMPLES]) for i in range(0, len(verdicts), SAMPLES)]


def flag(row: dict[str, Any]) -> str:
    """Why this base is not a fair start for this task; empty if it is."""
    low, high = BAND
    if row["pass@1"] < max(low, TIMES_CHANCE * row["chance"]):
        return f"pass@1 below {max(low, TIMES_CHANCE * row['chance']):.2f}: too little to reinforce; pretrain longer"
    if row["pass@1"] > high:
        return f"pass@1 above {high:.2f}: little left to learn; pretrain shorter"
    if row["pass@64"] >= CEILING:
        return f"pass@64 not below {CEILING:.2f}: everything can be found by sampling"
    return ""
