"""The time to read the directories of 1,000 runs and to write their HTML report.

The runs are made up, in the files and sizes of real ones: 10 arms on 2 tasks and 2 models, as many seeds as it takes; 200
steps with an evaluation every 40, and 1,500 judged completions of the test split. Each rendering is timed in a process of
its own, from the first file that is read to the page on disk; starting Python and importing are not counted.

ratio  the target of 30 seconds over the time it takes
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _side_by_side as side

TARGET = 30.0  # seconds
NAME = "many"
TASKS, MODELS = ("arithmetic", "knights"), ("dense", "teacher")
STEPS, EVERY, PROBLEMS, SAMPLES = 200, 40, 500, 2
BASE = 0.25  # pass@1 of the base
ARMS = {  # label: method, what it gains
    "base": ("base", 0.0),
    "sft": ("sft", 0.2),
    "rejection": ("sft", 0.15),
    "distill-data": ("distill", 0.25),
    "distill-soft": ("distill", 0.3),
    "dpo": ("dpo", 0.1),
    "ppo": ("ppo", 0.2),
    "ppo-verifier": ("ppo", 0.25),
    "grpo": ("grpo", 0.3),
    "grpo-random-reward": ("grpo", 0.0),
}
SETTINGS = {
    "budget": {"flops": 4e12},
    "options": {"lr": 3e-4, "beta": 0.04},
    "evaluation": {"test_problems": PROBLEMS, "test_samples": SAMPLES},
    "threads": 1,
    "dtype": "float32",
}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def metrics(random: Random, method: str, gain: float) -> list[dict[str, Any]]:
    """A learning curve as a run writes it."""
    rows = list[dict[str, Any]]()
    for step in range(STEPS + 1 if method != "base" else 1):
        learnt = 1 - math.exp(-3 * step / STEPS)
        skill = BASE + gain * learnt
        meter = {
            "budget/sampled_tokens": 3500 * step,
            "budget/scored_tokens": 5100 * step,
            "budget/trained_tokens": 4900 * step,
            "budget/verifier_calls": 256 * step,
            "budget/flops": 4e10 * step,
            "budget/seconds": 1.5 * step,
            "budget/eval_seconds": 0.1 * step,
            "budget/peak_bytes": 10**9,
        }
        if step:
            names = ("reward_std", "entropy", "frac_reward_zero_std", "completions/clipped_ratio", "grad_norm", "kl")
            noise = {name: random.random() for name in names}
            train = {"reward": skill + random.gauss(0, 0.05), "loss": 1 - learnt + random.gauss(0, 0.05), "learning_rate": 3e-4}
            rows.append({"step": step, **train, "completions/mean_length": 13 + 8 * learnt, **noise, **meter})
        if step % EVERY == 0:
            rows.append({"step": step, **evaluation(random, "eval", skill, learnt), **meter})
    last, meter = rows[-1]["step"], {k: v for k, v in rows[-1].items() if k.startswith("budget/")}
    final = evaluation(random, "test", BASE + gain, 1.0) | evaluation(random, "ood", gain / 2, 1.0) | {"test/greedy": BASE + gain}
    return [*rows, {"step": last, **final, "other/programs/pass@1": BASE - gain / 4, **meter}]


def evaluation(random: Random, split: str, skill: float, learnt: float) -> dict[str, float]:
    right = min(1.0, max(0.0, skill + random.gauss(0, 0.02)))
    length, kl = 13 + 8 * learnt, 0.1 * learnt
    values = {"pass@1": right, "reward": right, "mean_length": length, "truncated": 0.01, "kl": kl, "entropy": 0.5}
    return {f"{split}/{name}": value for name, value in values.items()}


def completions(random: Random, skill: float) -> list[dict[str, Any]]:
    """What an arm wrote on the test split, judged."""
    rows = list[dict[str, Any]]()
    for n in range(PROBLEMS):
        a, b = 10 + n * 7 % 89, 10 + n * 5 % 83
        problem = {"problem": f"p{n:04d}", "prompt": f"{a}+{b}=", "expected": str(a + b), "band": f"+{n % 2 + 2}"}
        for sample in range(SAMPLES + 1):
            right = random.random() < skill
            answer = str(a + b if right else a + b + random.choice((-10, -1, 1, 10)))
            text = f"<{a % 10}+{b % 10}={a % 10 + b % 10}>{answer}"
            verdict = {"reward": float(right), "answer": answer, "reason": "correct" if right else f"expected {a + b}"}
            drawn = {"sample": max(0, sample - 1), "greedy": sample == 0, "length": len(text), "truncated": False}
            rows.append({**problem, **drawn, "completion": text, **verdict})
    return rows


def write_run(folder: Path, method: str, gain: float, config: dict[str, Any], texts: Path) -> None:
    """The directory of a finished run; the judged completions are shared among the seeds of an arm."""
    (folder / "evals").mkdir(parents=True)
    rows = metrics(Random(folder.name), method, gain)
    documents = {
        "config": {"method": method, "base": config["model"], "start": "", **SETTINGS, **config},
        "environment": {"git": "0" * 40, "diff": None, "argv": ["bakeoff", "run", f"{NAME}.toml"], "threads": 1},
        "card": {"samples from": "π_θ", "reward": "the verifier", "KL": "none"},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    (folder / "metrics.jsonl").write_text(lines(rows))
    os.link(texts, folder / "evals" / f"{rows[-1]['step']:06d}-test.jsonl")
    (folder / "DONE").touch()


def write_runs(root: Path, runs: int) -> int:
    """Write a comparison of at least so many runs; how many there are."""
    identities = list[str]()
    seeds = math.ceil(runs / len(ARMS) / len(TASKS) / len(MODELS))
    for task, model, (label, (method, gain)) in product(TASKS, MODELS, ARMS.items()):
        texts = root / f"{task}-{label}-{model}.jsonl"
        texts.write_text(lines(completions(Random(texts.name), BASE + gain)))
        for seed in range(seeds):
            identities.append(f"{task}-{label}-{model}-s{seed}-{len(identities):08x}")
            config = {"label": label, "task": task, "model": model, "seed": seed}
            write_run(root / "runs" / identities[-1], method, gain, config, texts)
    comparison = root / "comparisons" / NAME
    comparison.mkdir(parents=True)
    (comparison / "comparison.toml").write_text(f'name = "{NAME}"\nquestion = "How long does a large report take?"\n')
    (comparison / "runs.txt").write_text("".join(f"{identity}\n" for identity in identities))
    return len(identities)


def rendered(root: Path) -> dict[str, float]:
    """Render once, in this process."""
    from reports.html import write

    before = side.peak_mb()
    started = time.perf_counter()
    page = write(root, NAME)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "page_mb": page.stat().st_size / 1e6, "peak_mb": side.peak_mb(), "imports_mb": before}


def main() -> None:
    parser = side.parser(__doc__)
    parser.add_argument("--runs", type=side.positive, default=1000, metavar="N", help="at least so many (default: %(default)s)")
    parser.add_argument("--alone", type=Path, metavar="FOLDER", help="render what is there, once, in this process")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(rendered(options.alone)))
        return
    with TemporaryDirectory(prefix="bakeoff-benchmark-") as folder:
        runs = write_runs(Path(folder), options.runs)
        measured = side.measure({"ours": lambda: side.child("--alone", folder)}, options.pairs)["ours"]
    side.report(
        "report",
        1,
        ratio=TARGET / statistics.median(measured["seconds"]),
        ours=side.spreads(measured),
        target_seconds=TARGET,
        runs=runs,
        arms=len(ARMS),
        sections=len(TASKS) * len(MODELS),
        steps=STEPS,
        completions_a_run=PROBLEMS * (SAMPLES + 1),
        pairs=options.pairs,
    )


if __name__ == "__main__":
    main()
