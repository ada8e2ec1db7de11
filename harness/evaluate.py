"""Measuring a policy: the same for every arm, on the same held-out prompts, with the same random numbers for the same seed.

Completions are sampled at temperature 1 from the whole distribution. Nothing here is charged to the budget.

    pass@1        share of sampled completions that are right, over problems × samples
    greedy        share of problems whose most likely continuation, token by token, is right
    kl            E_{y~π} 1/|y| Σ_t KL(π(·|y_<t) ‖ π_base(·|y_<t)), nats a token: exact over the vocabulary at every token of
                  the first sample of each problem; the base is the comparison's, also for an arm that starts from another arm
    entropy       of π at the same tokens
    thinks        share of completions that reason; of those the share whose reasoning holds (`trace`), the share that mixes
                  languages (`mixed`), and the number of steps gone over again (`rechecks`), all by the task's rules
    mean_length   tokens of a completion, EOS included; `mean_length_right` and `mean_length_wrong` of those that are
    router_entropy, max_violation
                  of the routers' scores as shares, in nats, at the same tokens as `kl`; and of the experts, the greatest load
                  over the mean load of its layer, less 1 (global MaxVio)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import checks, files, moe, ops
from harness.generate import Heard, Samples, generate
from harness.judging import judged
from harness.policy import taken
from harness.speculative import Drafting, speculate
from harness.task import Problem, Split, Task

if TYPE_CHECKING:
    from harness.run import Run

TIE = 1e-4  # of two log-probabilities


def evaluate(
    run: Run, task: Task, problems: Sequence[Problem], samples: int, greedy: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The metrics, and one line a completion."""
    prompts = [run.prompt_ids(p) for p in problems]
    eos, pad = run.tokenizer.eos_token_id, run.tokenizer.pad_token_id
    metrics, lines = dict[str, float](), list[dict[str, Any]]()

    def answers(group: int, keys: list[str] | None) -> list[dict[str, Any]]:
        tries = run.best_of[0] if run.best_of and keys is not None else 1
        drawn = [f"{key}/{i}" if i else key for key in keys for i in range(tries)] if keys is not None else None

        def sample(heard: Heard) -> Samples:
            if tries == 1:
                return generate(run.policy, prompts, group, drawn, task.max_new_tokens, eos, pad, heard)
            y = generate(run.policy, prompts, group * tries, drawn, task.max_new_tokens, eos, pad)
            return y[picked(run, prompts, y, group, tries)].tell(heard)

        asked = [(p, k) for p in problems for k in range(group)]
        y, texts, verdicts = judged(task, [p for p, _ in asked], run.tokenizer, sample)
        out = list[dict[str, Any]]()
        for (p, k), tokens, text, verdict in zip(asked, y.tokens, texts, verdicts, strict=True):
            out.append(
                {
                    "problem": p.id,
                    "sample": k,
                    "greedy": keys is None,
                    "prompt": p.prompt,
                    "completion": text,
                    "reward": verdict.reward,
                    "answer": verdict.answer,
                    "expected": p.answer,
                    "reason": verdict.reason,
                    "length": len(tokens),
                    "truncated": verdict.truncated,
                    "trace": verdict.trace,
                    "rechecks": verdict.rechecks,
                    "mixed": verdict.mixed,
                    "band": p.meta.get("band", ""),
                }
            )
        if keys is not None:
            firsts = range(0, len(y.tokens), group)
            metrics.update(divergence(run, task, prompts, [y.tokens[i] for i in firsts], [y.logp[i] for i in firsts]))
        return out

    sampled = answers(samples, [f"{run.decoding}/{run.config.seed}/{p.id}/{k}" for p in problems for k in range(samples)])
    lines += sampled
    metrics["pass@1"] = mean(line["reward"] == 1.0 for line in sampled)
    metrics["reward"] = mean(line["reward"] for line in sampled)
    metrics["mean_length"] = mean(line["length"] for line in sampled)
    metrics["truncated"] = mean(line["truncated"] for line in sampled)
    metrics |= lengths(sampled) | reasoning(sampled)
    if greedy:
        lines += (best := answers(1, None))
        metrics["greedy"] = mean(line["reward"] == 1.0 for line in best)
    return metrics, lines


def lengths(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens of the completions that are right, and of those that are wrong; of none, nothing."""
    kinds = {"right": [line["length"] for line in lines if line["reward"] == 1.0]}
    kinds["wrong"] = [line["length"] for line in lines if line["reward"] != 1.0]
    return {f"mean_length_{kind}": mean(of_kind) for kind, of_kind in kinds.items() if of_kind}


def reasoning(lines: list[dict[str, Any]]) -> dict[str, float]:
    """What the completions' reasoning is worth, where there is any; of none, only that there is none."""
    thoughts = [line for line in lines if line["trace"] is not None]
    metrics = {"thinks": len(thoughts) / len(lines)}
    if thoughts:
        metrics |= {name: mean(line[name] for line in thoughts) for name in ("trace", "mixed", "rechecks")}
    return metrics


def picked(run: Run, prompts: list[list[int]], y: Samples, group: int, tries: int) -> list[int]:
    """The index of the completion of each `tries` that `run.best_of` scores highest."""
    assert run.best_of
    asked = [prompt for prompt in prompts for _ in range(group * tries)]
    parts = (slice(i, i + run.config.micro_batch) for i in range(0, len(asked), run.config.micro_batch))
    with torch.no_grad():
        score_B = torch.cat([run.best_of[1](run.pad(asked[part], y.tokens[part])) for part in parts])
    return (torch.arange(0, len(asked), tries) + score_B.view(-1, tries).argmax(-1).cpu()).tolist()


def divergence(
    run: Run, task: Task, prompts: list[list[int]], tokens: list[list[int]], logp: list[list[float]]
) -> dict[str, float]:
    """KL to the base, entropy and load of the experts at the tokens of one completion a prompt; sampler and trainer must agree on
    them.
    """
    kl, entropy, asked, entropies = 0.0, 0.0, list[Tensor](), list[Tensor]()
    trained, sampled = list[Tensor](), list[Tensor]()  # log-probabilities of the completions' tokens
    rows = run.config.micro_batch
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(tokens[i]))
    for part in (order[i : i + rows] for i in range(0, len(order), rows)):
        batch = run.pad([prompts[i] for i in part], [tokens[i] for i in part])
        with torch.no_grad():
            base_BTV = run.base.logits(batch.tokens_BT)
            with moe.watched(run.policy.model) as routing:
                logits_BTV = run.policy.logits(batch.tokens_BT)
        weight = len(batch) / len(prompts)
        if routing:
            asked.append(torch.stack([layer.counts(batch.mask_BT[:, 1:].flatten()) for layer in routing]))
            entropies += [layer.entropies(batch.mask_BT[:, 1:].flatten()) for layer in routing]
        kl += weight * float(ops.mean(ops.exact_kl(logits_BTV, base_BTV), batch.mask_BT))
        entropy += weight * float(ops.mean(ops.entropy(logits_BTV), batch.mask_BT))
        trained.append(taken(logits_BTV, batch.tokens_BT)[batch.mask_BT.bool()].cpu())
        sampled.append(torch.tensor([x for i in part for x in logp[i]]))
    checks.agreement(run, torch.cat(trained), torch.cat(sampled), "evaluation does not see the policy that is trained", 100)
    metrics = {"kl": kl, "entropy": entropy}
    if asked:
        load_LE = moe.relative(torch.stack(asked).sum(0))
        metrics["max_violation"] = float(load_LE.max() - 1)
        metrics["router_entropy"] = float(torch.cat(entropies).mean())
        run.write_load(task.name, load_LE.tolist())
    return metrics


def on_validation(run: Run) -> dict[str, float]:
    """A point of the learning curve: `eval/…`."""
    e = run.config.evaluation
    problems = run.task.problems("validation")[: e.validation_problems]
    metrics, lines = evaluate(run, run.task, problems, e.validation_samples, greedy=False)
    run.write_evaluation("validation", lines)
    return {f"eval/{k}": v for k, v in metrics.items()}


def at_the_end(run: Run) -> dict[str, float]:
    """What is reported: `test/…`, `ood/…` and the other tasks."""
    e, columns = run.config.evaluation, dict[str, float]()
    splits: list[tuple[Split, int, int]] = [("test", e.test_problems, e.test_samples), ("ood", e.ood_problems, e.ood_samples)]
    for split, n, samples in splits:
        if n and (problems := run.task.problems(split)[:n]):
            metrics, lines = evaluate(run, run.task, problems, samples, greedy=split == "test")
            run.write_evaluation(split, lines)
            columns |= {f"{split}/{k}": v for k, v in metrics.items()}
    if Drafting.reads(run.policy) and e.test_problems:
        row = drafting(run, run.task.problems("test")[: e.test_problems])
        files.write_json(run.folder / "drafts.json", {run.task.name: row})
        columns["mtp/acceptance"] = row["accepted"] / max(1, row["drafted"])
    for task in run.other_tasks if e.test_problems else ():
        metrics, lines = evaluate(run, task, task.problems("test")[: e.other_problems], 1, greedy=False)
        run.write_evaluation(f"other-{task.name}", lines)
        columns[f"other/{task.name}/pass@1"] = metrics["pass@1"]
    return columns


def drafting(run: Run, problems: Sequence[Problem]) -> dict[str, float]:
    """What the policy's own drafts are worth in greedy decoding, one completion a problem.

    drafted, accepted, rounds, tokens   harness/speculative.py
    plain_seconds, drafted_seconds      of decoding without and with them
    different, ties                     completions that are not the same; those of them that part where the two likeliest tokens
                                        are within `TIE` of each other
    """
    prompts = [run.prompt_ids(p) for p in problems]
    limits = run.task.max_new_tokens, run.tokenizer.eos_token_id, run.tokenizer.pad_token_id
    times = [time.perf_counter()]
    plain = generate(run.policy, prompts, 1, None, *limits)
    times.append(time.perf_counter())
    drafted, counts = speculate(run.policy, prompts, 1, None, *limits)
    times.append(time.perf_counter())
    parted = [i for i, (a, b) in enumerate(zip(plain.tokens, drafted.tokens, strict=True)) if a != b]
    return {
        **asdict(counts),
        "plain_seconds": times[1] - times[0],
        "drafted_seconds": times[2] - times[1],
        "prompts": len(prompts),
        "different": len(parted),
        "ties": sum(tied(run, prompts[i], plain.tokens[i], drafted.tokens[i]) for i in parted),
    }


def tied(run: Run, prompt: list[int], a: list[int], b: list[int]) -> bool:
    """Whether two completions part at a token that could be either."""
    same = next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.no_grad():
        logits_V = run.policy.logits(torch.tensor([prompt + a[: same + 1]], device=run.policy.device))[0, -1]
    best = logits_V.log_softmax(-1).topk(2).values
    return float(best[0] - best[1]) < TIE


def mean(values: Any) -> float:
    values = [float(v) for v in values]
    return sum(values) / len(values)
