"""Run directories as the harness writes them, made up: what the report tests read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

ARMS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "base": ("base", 0.0, {}),
    "sft": ("sft", 0.22, {"learning_rate": 1e-3, "batch": 64}),
    "distill": ("distill", 0.30, {"learning_rate": 1e-3, "alpha": 0.5, "temperature": 2.0}),
    "dpo": ("dpo", 0.14, {"learning_rate": 3e-4, "beta": 0.1}),
    "ppo": ("ppo", 0.31, {"learning_rate": 5e-4, "beta": 0.02, "clip": 0.2, "lam": 1.0}),
    "grpo": ("grpo", 0.36, {"learning_rate": 5e-4, "beta": 0.04, "clip": 0.2, "G": 8}),
    "grpo-random-reward": ("grpo", 0.005, {"learning_rate": 5e-4, "beta": 0.04, "G": 8, "reward": "random"}),
}
MORE: dict[str, tuple[str, float, dict[str, Any]]] = {
    "rejection": ("sft", 0.18, {"source": "start", "group": 4}),
    "distill-soft": ("distill", 0.26, {"targets": "soft"}),
    "dpo-online": ("dpo", 0.20, {"source": "policy", "beta": 0.1}),
    "ppo-learned": ("ppo", 0.12, {"source": "learned", "beta": 0.02}),
    "sft-grpo": ("grpo", 0.33, {"learning_rate": 5e-4, "beta": 0.04}),
    "sft-dpo": ("dpo", 0.28, {"beta": 0.1}),
}
STARTS = {"sft-grpo": "sft", "sft-dpo": "sft"}
MEAN = "mean over tokens, then over completions"
CARDS = {
    "sft": {
        "samples from": "the task's solutions",
        "reward": "none",
        "aggregation": MEAN,
        "KL": "none",
        "passes": "1 over each batch",
    },
    "distill": {
        "samples from": "the teacher",
        "reward": "kept if the verifier finds it right",
        "KL": "exact, teacher‖π, α = 0.5, T = 2",
        "aggregation": MEAN,
        "passes": "1 over each batch",
    },
    "dpo": {
        "samples from": "π_ref",
        "reward": "ranking by the verifier, 0% of it wrong",
        "baseline": "the other of the pair",
        "aggregation": "sum over tokens, mean over pairs",
        "KL": "implicit, β = 0.1",
        "passes": "1 over each pair",
    },
    "ppo": {
        "samples from": "π_θ",
        "reward": "the verifier",
        "baseline": "a critic, GAE with γ = 1, λ = 1",
        "advantage": "whitened over the batch",
        "aggregation": MEAN,
        "KL": "k1, in the reward at every token, β = 0.02",
        "clip": "ε = 0.2",
        "passes": "2 in 4 minibatches",
    },
    "grpo": {
        "samples from": "π_θ",
        "reward": "the verifier",
        "baseline": "the mean of 8 completions",
        "advantage": "divided by std",
        "aggregation": MEAN,
        "KL": "k3, in the loss, β = 0.04",
        "clip": "ε = 0.2",
        "passes": "1 over each batch",
    },
}
DRIFT = {"sft": 2.4, "distill": 1.8, "ppo": 0.6}  # KL to the base for each point gained
TRAINED_BY_REWARD = ("ppo", "grpo")
HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\u202egnp.exe\x1b[31m\x00\u2028\ud800" + "x" * 9000
LAYERS, EXPERTS = 2, 6
FACTS = {  # parameters, active ones, elements of the cache, held-out loss, how uneven the load is
    "dense": (90_000, 90_000, 256, 0.75, 0.0),
    "moe": (240_000, 91_000, 256, 0.70, 0.4),
    "moe-free": (240_000, 91_000, 256, 0.76, 1.5),
    "mtp": (90_000, 90_000, 256, 0.74, 0.0),
}
TROUBLE = {("dpo", 1): "failed", ("ppo", 2): "missing", ("sft", 2): "unfinished"}
BASE = 0.23


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _meter(step: int, rate: float) -> dict[str, float]:
    return {
        "budget/flops": 2e12 * step / 200,
        "budget/sampled_tokens": int(9000 * step * rate),
        "budget/scored_tokens": int(4000 * step * rate),
        "budget/trained_tokens": 5200 * step,
        "budget/verifier_calls": int(128 * step * rate),
        "budget/seconds": 0.6 * step * (1 + rate),
        "budget/eval_seconds": 0.05 * step + 3,
        "budget/peak_bytes": 3.2e8,
    }


def _evaluation(random: Random, split: str, skill: float, length: float, kl: float) -> dict[str, float]:
    return {
        f"{split}/pass@1": min(max(skill + random.gauss(0, 0.008), 0), 1),
        f"{split}/greedy": min(max(skill + 0.03 + random.gauss(0, 0.01), 0), 1),
        f"{split}/reward": min(max(skill + 0.02, 0), 1),
        f"{split}/mean_length": length + random.gauss(0, 0.4),
        f"{split}/truncated": max(0.02 + random.gauss(0, 0.004), 0),
        f"{split}/kl": kl,
    }


def _metrics(random: Random, label: str, method: str, gain: float, steps: int, others: Sequence[str]) -> list[dict]:
    rate = 1.0 if method in TRAINED_BY_REWARD else 0.0 if method == "sft" else 0.4
    lift = gain + (random.gauss(0, 0.015) if gain else 0)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        share = 1 - 2.718 ** (-3.2 * step / max(steps, 1))
        skill, kl = BASE + lift * share, DRIFT.get(method, 0.9) * abs(gain) * share + (0.15 if label in STARTS else 0)
        length = 14 + (9 * share if "random" not in label and method in TRAINED_BY_REWARD else 2 * share)
        meter = _meter(step, rate)
        if step:
            train = {"loss": 1.4 - share + random.gauss(0, 0.05), "grad_norm": 0.7, "learning_rate": 5e-4}
            if method in TRAINED_BY_REWARD:
                reward = 0.5 if "random" in label else skill
                train |= {
                    "reward": reward + random.gauss(0, 0.05),
                    "reward_std": 0.4,
                    "frac_reward_zero_std": 0.1,
                    "kl": kl,
                    "entropy": 1.1 - 0.6 * share + random.gauss(0, 0.02),
                    "completions/mean_length": length,
                    "completions/clipped_ratio": 0.02,
                    "clip_ratio/region_mean": 0.01,
                }
            if method == "ppo":
                train["explained_variance"] = 0.9 - 6 * (1 - share) ** 8 + random.gauss(0, 0.04)
            if label == "ppo-learned":
                train["reward_model/reward"] = 1.6 * share - 0.4 + random.gauss(0, 0.05)
                train["reward"] = skill + 0.25 * share * (1 - 1.5 * share) + random.gauss(0, 0.03)
            if method == "dpo":
                train |= {
                    "rewards/margins": 2 * share,
                    "rewards/accuracies": min(0.5 + 0.45 * share + random.gauss(0, 0.03), 1),
                    "logps/chosen": -9 - 5 * share + random.gauss(0, 0.3),
                    "logps/rejected": -11 - 19 * share + random.gauss(0, 0.4),
                }
            rows.append({"step": step, **train, **meter})
        if step % 20 == 0 or step == steps:
            rows.append({"step": step, **_evaluation(random, "eval", skill, length, kl), **meter})
    last = BASE + lift * (0.96 if steps else 0)
    final = {"step": steps, **_evaluation(random, "test", last, length, kl), **_meter(steps, rate)}
    final |= _evaluation(random, "ood", 0.4 * last, length + 3, kl)
    final |= {f"other/{task}/pass@1": max(0.3 - 0.2 * gain + random.gauss(0, 0.01), 0) for task in others}
    if label in STARTS:
        rows[0] |= {"ancestors/flops": 1.6e12, "ancestors/seconds": 120.0}
    if label == "ppo-learned":
        rows[0] |= {"reward_model/accuracy": 0.842, "reward_model/pairs": 512, "reward_model/calibration_error": 0.063}
    return [*rows, final]


def _completions(
    random: Random, skill: float, problems: int, hostile: bool, samples: int = 2, traced: bool = False
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(problems):
        left, right = 3 + number * 7 % 41, 2 + number * 5 % 37
        for sample, greedy in ((0, True), *((sample, False) for sample in range(samples))):
            right_answer = random.random() < skill
            answer = str(left + right if right_answer else left + right + random.choice([-10, -1, 1, 10]))
            cut = not right_answer and random.random() < 0.08
            completion = f"<{left}+{right}: {left % 10}+{right % 10}={left % 10 + right % 10}>{answer}"
            if cut:
                completion, answer = f"<{left}+{right}: " + "0" * 24, ""
            if hostile and number == 0:
                completion = HOSTILE
            rows.append(
                {
                    "problem": f"p{number:04d}",
                    "sample": sample,
                    "greedy": greedy,
                    "prompt": f"{left}+{right}=",
                    "completion": completion,
                    "reward": float(right_answer),
                    "answer": answer or None,
                    "expected": str(left + right),
                    "reason": "correct" if right_answer else "truncated" if cut else "wrong answer",
                    "length": len(completion),
                    "truncated": cut,
                    "band": ["easy", "hard"][number % 2],
                }
                | ({"trace": None if cut else random.random() < 0.4, "rechecks": number % 3, "mixed": False} if traced else {})
            )
    return rows


def write_run(
    root: Path,
    label: str,
    seed: int,
    task: str = "arithmetic",
    model: str = "tiny",
    state: str = "done",
    steps: int = 100,
    problems: int = 40,
    hostile: bool = False,
    others: Sequence[str] = (),
    gain: float | None = None,
    samples: int = 2,
    traced: bool = False,
) -> str:
    """Write one run directory in the given state (done, failed, unfinished or missing) and return its id."""
    method, usual, options = (ARMS | MORE)[label]
    gain = usual if gain is None else gain
    identity = identity_of(task, label, model, seed)
    if state == "missing":
        return identity
    random = Random(f"{label}{task}{model}{seed}")
    folder = root / "runs" / identity
    (folder / "evals").mkdir(parents=True)
    config = {
        "label": label, "method": method, "task": task, "model": model, "base": f"bases/{model}", "seed": seed,
        "start": identity_of(task, STARTS[label], model, seed) if label in STARTS else "",
        "budget": {"flops": 2e12}, "options": options, "evaluation": {"samples": 2, "temperature": 1.0},
        "threads": 1, "dtype": "float32",
    }  # fmt: skip
    environment = {
        "git": "0123abcd", "diff": "", "versions": {"python": "3.11.9", "torch": "2.13.0"}, "device": "cpu",
        "cpu": "Example CPU", "threads": 1, "argv": ["bakeoff", "run", "sweeps/demo.toml"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "card.json").write_text(json.dumps(CARDS.get(method, {})))
    steps = 0 if method == "base" else steps
    rows = _metrics(random, label, method, gain, steps, others)
    if traced:
        rows[-1] |= {"test/trace": 0.6 - gain, "test/thinks": 0.5 + gain, "test/rechecks": 1 + gain, "test/mixed": 0.01}
        rows[-1]["test/trace"] += random.gauss(0, 0.01)
    if state != "done":
        rows = rows[: len(rows) // 2]
    (folder / "metrics.jsonl").write_text("".join(map(_line, rows)))
    if state == "done":
        for split in ("test", "validation"):
            texts = _completions(random, BASE + gain, problems, hostile, samples, traced)
            (folder / "evals" / f"{steps:06d}-{split}.jsonl").write_text("".join(map(_line, texts)))
        (folder / "DONE").write_text("")
    if state == "failed":
        (folder / "FAILED").write_text("Traceback (most recent call last):\n  ...\nFloatingPointError: loss is nan\n")
    return identity


def identity_of(task: str, label: str, model: str, seed: int) -> str:
    """The id of the run of that arm."""
    return f"{task}-{label}-{model}-s{seed}-{abs(hash_of(label, task, model, seed)):08x}"


def hash_of(*parts: object) -> int:
    """A number that is the same in every process."""
    return Random(repr(parts)).getrandbits(32)


def write_comparison(
    root: Path,
    name: str = "demo",
    arms: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    tasks: Sequence[str] = ("arithmetic",),
    states: Mapping[tuple[str, int], str] | None = None,
    question: str = "Which method teaches a tiny model to add?",
    **run: Any,
) -> list[str]:
    """Write a comparison and its runs; `states` says which (label, seed) did not end well."""
    identities = [
        write_run(root, label, seed, task, state=(states or {}).get((label, seed), "done"),
                  others=[other for other in tasks if other != task], **run)
        for task in tasks for label in arms for seed in range(seeds)
    ]  # fmt: skip
    _list(root, name, question, identities)
    return identities


def _list(root: Path, name: str, question: str, identities: Sequence[str]) -> None:
    folder = root / "comparisons" / name
    folder.mkdir(parents=True)
    (folder / "comparison.toml").write_text(f'name = "{name}"\nquestion = {json.dumps(question)}\n')
    (folder / "runs.txt").write_text("".join(f"{identity}\n" for identity in identities))


def write_architectures(
    root: Path,
    models: Sequence[str] = tuple(FACTS),
    arms: Sequence[str] = ("base", "sft", "grpo"),
    seeds: int = 3,
    task: str = "arithmetic",
    shared: bool = False,
    states: Mapping[tuple[str, int], str] | None = None,
    **run: Any,
) -> list[str]:
    """Write a comparison of models with what their bases are; `shared` gives all seeds one base."""
    identities: list[str] = []
    for model in models:
        for label in arms:
            for seed in range(seeds):
                state = (states or {}).get((label, seed), "done")
                identity = write_run(root, label, seed, task, model, state, **run)
                identities.append(identity)
                if state != "missing":
                    _write_base(root / "runs" / identity, label, model, 0 if shared else seed, task, state == "done")
    _list(root, "demo", "Which architecture?", identities)
    return identities


def _load(random: Random, uneven: float) -> list[list[float]]:
    layers = [[2.718 ** random.gauss(0, uneven) for _ in range(EXPERTS)] for _ in range(LAYERS)]
    return [[x * EXPERTS / sum(layer) for x in layer] for layer in layers]


def _write_base(folder: Path, label: str, model: str, seed: int, task: str, done: bool) -> None:
    """base.json, experts.jsonl and drafts.json of a run, and the name of its base in its config."""
    parameters, active, elements, loss, uneven = FACTS[model]
    random = Random(f"{model}{seed}")
    held_out = loss + random.gauss(0, 0.004)
    said: dict[str, Any] = {
        "parameters": parameters, "active": active, "flops_per_token": 2 * active, "cache_elements": elements,
        "cache_bytes": 4 * elements, "recipe": f"{model}-{seed}", "tokens": 200_000, "flops": 6e5 * active, "loss": loss,
        "held_out": held_out, "families": {"arithmetic": held_out - 0.1, "knights": held_out + 0.1},
        "curve": [{"step": step, "loss": 4 / step} for step in range(1, 101)],
    }  # fmt: skip
    if uneven:
        said |= {
            "masked": {str(r): held_out + 0.1 * r for r in (0, 1, 2, 4)},
            "load": {family: _load(random, uneven) for family in said["families"]},
            "max_violation": 0.4 + uneven,
            "collapsed": int(uneven > 1),
        }
        for row in said["curve"]:
            row |= {"moe/max_violation": uneven + 2 / row["step"], "moe/min_load": 0.2, "moe/collapsed": float(uneven > 1)}
    (folder / "base.json").write_text(json.dumps(said))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base": f"{model}-{seed}"}))
    if uneven:
        before = {"step": 0, "task": task, "load": _load(Random(f"{model}{seed}"), uneven)}
        after = {"step": 100, "task": task, "load": _load(random, uneven / 2)}
        rows = [before, *([after, {**after, "task": "other"}] if done and label != "base" else [])]
        (folder / "experts.jsonl").write_text("".join(map(_line, rows)))
    if model.startswith("mtp") and label == "base" and done:
        counts = {
            "drafted": 400, "accepted": 300 + seed, "rounds": 500, "tokens": 800, "plain_seconds": 3.0, "drafted_seconds": 2.0,
            "prompts": 50, "different": 2, "ties": 1,
        }  # fmt: skip
        (folder / "drafts.json").write_text(json.dumps({task: counts}))
