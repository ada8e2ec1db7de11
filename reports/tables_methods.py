"""Paper tables of what methods reached: one function a style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan

from reports.leaderboard import is_base, is_control
from reports.load import HEADLINE, Comparison, Run, by_seed
from reports.stats import maj_at_k, paired, pass_at_k, t_interval
from reports.tables_cells import Block, Cell, Table, arms, cell, finished, mean, measured, refuse, table, why

REINFORCED = ("grpo", "ppo")
DISTILLED = "distill"
SPENT = {
    "flops": "FLOPs",
    "sampled_tokens": "tokens sampled",
    "trained_tokens": "tokens trained",
    "seconds": "seconds",
    "peak_bytes": "peak bytes",
}
TERA, MILLION = 1e12, 1e6


def _place(task: str, model: str) -> str:
    return f"{task}, {model}"


def _done(comparison: Comparison, style: str) -> None:
    if not comparison.count("done"):
        raise refuse(comparison, style, f"a finished run; none of {len(comparison.runs)} is")


def _others(runs: Sequence[Run]) -> list[str]:
    """The other tasks that runs were asked, in the order of their columns."""
    columns = dict.fromkeys(column for run in runs for column in run.metrics)
    return [column.split("/")[1] for column in columns if column.startswith("other/") and column.endswith("/pass@1")]


def deepseekmath(comparison: Comparison) -> Table:
    """Method × benchmark, in-domain and out-of-domain (DeepSeekMath, Table 5)."""
    _done(comparison, "deepseekmath")
    blocks: list[Block] = []
    for task, model in comparison.sections:
        others = _others(comparison.of(task, model))
        names = {f"in: {task}": HEADLINE, f"in: {task}, greedy": "test/greedy", f"out: {task}, harder": "ood/pass@1"}
        names |= {f"out: {other}": f"other/{other}/pass@1" for other in others}
        rows = [
            (Cell(label), finished(runs), *(measured(runs, name, "share") for name in names.values()))
            for label, runs in arms(comparison, task, model).items()
        ]
        blocks.append(Block(_place(task, model), ("method", "seeds", *names), tuple(rows)))
    return table(
        comparison, "deepseekmath", "In: the task trained on. Out: a harder part of it, and other tasks. Pass@1.", blocks
    )


def r1_distill(comparison: Comparison) -> Table:
    """Distillation against reinforcement learning, and their differences on the same seeds (DeepSeek-R1, Table 6)."""
    blocks: list[Block] = []
    drawn, most = _samples(comparison)
    for task, model in comparison.sections:
        found = arms(comparison, task, model)
        kept = {label: runs for label, runs in found.items() if not is_control(runs[0])}
        taught = {label: runs for label, runs in kept.items() if runs[0].method == DISTILLED}
        reinforced = {label: runs for label, runs in kept.items() if runs[0].method in REINFORCED}
        if not taught or not reinforced:
            continue
        others = _others(comparison.of(task, model))
        names = {f"{task} pass@1": HEADLINE, f"{task} greedy": "test/greedy", f"{task}, harder": "ood/pass@1"}
        names |= {other: f"other/{other}/pass@1" for other in others}
        shown = {label: runs for label, runs in kept.items() if is_base(runs[0])} | reinforced | taught
        rows = [
            (
                Cell(label),
                finished(runs),
                *(measured(runs, name, "share") for name in names.values()),
                _at(runs, drawn, most, _maj) if most else Cell(nan, "share", reason="no samples"),
                mean(runs, "budget/flops", "amount"),
            )
            for label, runs in shown.items()
        ]
        for label, runs in taught.items():
            for rival, theirs in reinforced.items():
                gaps = (
                    cell(
                        paired(by_seed(runs, name), by_seed(theirs, name)),
                        "difference of shares",
                        f"{label} and {rival} share no finished seed that has it",
                    )
                    for name in names.values()
                )
                rows.append((Cell(f"{label} − {rival}"), Cell(""), *gaps, Cell(""), Cell("")))
        blocks.append(Block(_place(task, model), ("arm", "seeds", *names, f"{task} maj@{most}", "FLOPs"), tuple(rows)))
    if not any(run.done for run in comparison.runs) or not blocks:
        raise refuse(
            comparison,
            "r1-distill",
            f"finished arms of `{DISTILLED}` and of one of {', '.join(REINFORCED)} on one task and model",
        )
    return table(
        comparison,
        "r1-distill",
        "Distilled from a teacher, or reinforced by the verifier, from the same base.",
        blocks,
        (
            "Differences are paired by seed and not adjusted for their number.",
            "FLOPs hold the teacher's answers, not its training.",
        ),
    )


def r1_stages(comparison: Comparison) -> Table:
    """Stages × benchmark: each arm with the arms that it starts from (DeepSeek-R1, Table 3)."""
    if not any(run.stages for run in comparison.runs):
        raise refuse(comparison, "r1-stages", 'an arm that starts from another: `start = "sft"` under [methods.NAME]')
    _done(comparison, "r1-stages")
    blocks: list[Block] = []
    for task, model in comparison.sections:
        others = _others(comparison.of(task, model))
        names = {task: HEADLINE, f"{task}, harder": "ood/pass@1", **{other: f"other/{other}/pass@1" for other in others}}
        rows = [
            (
                Cell(" → ".join((*runs[0].stages, label))),
                finished(runs),
                *(measured(runs, name, "share") for name in names.values()),
                mean(runs, "test/mean_length", "amount"),
                mean(runs, "budget/flops", "amount"),
                mean(runs, "ancestors/flops", "amount") if runs[0].stages else Cell(0.0, "amount"),
            )
            for label, runs in arms(comparison, task, model).items()
        ]
        header = ("stages", "seeds", *names, "length", "FLOPs", "FLOPs before")
        blocks.append(Block(_place(task, model), header, tuple(rows)))
    return table(comparison, "r1-stages", "Pass@1 after each stage; FLOPs of the last stage, and of those before it.", blocks)


def cost(comparison: Comparison) -> Table:
    """What each arm spent, and what it gained over the base for it (DeepSeek-R1, Table 7)."""
    _done(comparison, "cost")
    blocks: list[Block] = []
    for task, model in comparison.sections:
        found = arms(comparison, task, model)
        base = [run for runs in found.values() for run in runs if is_base(run)]
        rows = [
            (
                Cell(label),
                finished(runs),
                measured(runs, HEADLINE, "share"),
                *(mean(runs, f"budget/{name}", "amount") for name in SPENT),
                _per(runs, base, ("budget/flops",), TERA),
                _per(runs, base, ("budget/sampled_tokens", "budget/trained_tokens"), MILLION),
                _per(runs, base, ("budget/seconds",), 60),
            )
            for label, runs in found.items()
        ]  # fmt: skip
        header = ("arm", "seeds", "pass@1", *SPENT.values(), "points a TFLOP", "points a million tokens", "points a minute")
        blocks.append(Block(_place(task, model), header, tuple(rows)))
    return table(
        comparison,
        "cost",
        "Spent by each arm in its own stage, and points of pass@1 gained over the base of the same seed for it.",
        blocks,
        (
            "FLOPs count every network that takes part: critic, reward model, reference and teacher too. Seconds and bytes are "
            "of the machine that ran it; bytes are of the whole process.",
            "Runs do not record how many parameters they train, so no column says it.",
        ),
    )


def _per(runs: Sequence[Run], base: Sequence[Run], names: Sequence[str], scale: float) -> Cell:
    if all(is_base(run) for run in runs):
        return Cell(nan, "points", reason="the base is what gains are measured from")
    start, scores = by_seed(base, HEADLINE), by_seed(runs, HEADLINE)
    spent = [by_seed(runs, name) for name in names]
    seeds = [seed for seed in scores if seed in start and all(seed in one for one in spent)]
    costs = {seed: sum(one[seed] for one in spent) for seed in seeds}
    gains = [100 * (scores[seed] - start[seed]) * scale / costs[seed] for seed in seeds if costs[seed] > 0]
    reason = why(runs, "cost") if not scores else "no base of the same seed" if not seeds else "it spent none"
    return cell(t_interval(gains), "points", reason)


def passk(comparison: Comparison) -> Table:
    """Pass@k and maj@k against k (DeepSeekMath, Figure 7)."""
    drawn, most = _samples(comparison)
    if most < 2:
        raise refuse(
            comparison, "passk", f"two or more samples of each problem, and the fewest are {most}: evaluation.test_samples"
        )
    ks = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    blocks: list[Block] = []
    for name, score in (("pass", _pass), ("maj", _maj)):
        for task, model in comparison.sections:
            rows = [
                (Cell(label), finished(runs), *(_at(runs, drawn, k, score) for k in ks))
                for label, runs in arms(comparison, task, model).items()
            ]
            header = ("arm", "seeds", *(f"{name}@{k}" for k in ks))
            blocks.append(Block(f"{name}@k, {_place(task, model)}", header, tuple(rows)))
    return table(
        comparison,
        "passk",
        "Of k samples: that one is right, and that the answer most of them give is right; ties count their share.",
        blocks,
        (f"Unbiased, from {most} or more samples of each problem.",),
    )


Sample = tuple[bool, str | None]  # whether it is right, and its answer


def _samples(comparison: Comparison) -> tuple[dict[str, list[list[Sample]]], int]:
    """Those of each finished run by its id, and how many there are of every problem."""
    drawn = {run.id: _drawn(run) for run in comparison.runs if run.done}
    return drawn, min((len(samples) for found in drawn.values() for samples in found), default=0)


def _drawn(run: Run) -> list[list[Sample]]:
    """The samples of each problem that a run was scored on."""
    return [[(row.get("reward") == 1.0, row.get("answer")) for row in rows] for rows in run.sampled(run.split).values()]


def _at(
    runs: Sequence[Run],
    drawn: Mapping[str, list[list[Sample]]],
    k: int,
    score: Callable[[list[Sample], int], float],
) -> Cell:
    """The t interval over seeds of the mean over problems."""
    known = [drawn[run.id] for run in runs if drawn.get(run.id)]
    try:
        means = [sum(score(samples, k) for samples in found) / len(found) for found in known]
    except ValueError as error:
        return Cell(nan, "share", reason=str(error))
    return cell(t_interval(means), "share", why(runs, "samples"))


def _pass(samples: list[Sample], k: int) -> float:
    return pass_at_k(len(samples), sum(right for right, _ in samples), k)


def _maj(samples: list[Sample], k: int) -> float:
    return maj_at_k([answer for _, answer in samples], [right for right, _ in samples], k)
