"""How much of what this machine can multiply a GRPO step makes use of.

The machine's peak is measured: the most FLOP/s of a float32 product of 256 × 128 by 128 × 384, the size of those inside
the model, and of two 1024 × 1024. The step's FLOPs are counted: 2N for every token that passes forward, 6N for every token
that is trained on, N the weights a token meets; only real tokens, each prompt read once a group while sampling, nothing
for attention, the optimiser or what is recomputed. A step is 32 prompts of the arithmetic task, 8 completions each of at
most 48 tokens, the reference's log-probabilities, one gradient step. Peak and step are measured in turns.

ratio   the share of the peak over the whole step, verifier and bookkeeping included
shares  the same of its phases, each timed by itself: sampling, scoring (by the reference), training
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _side_by_side as side

PROMPTS, GROUP, LIMIT, BETA, LR = 32, 8, 48, 0.04, 1e-6
SHAPES = ((256, 128, 384), (1024, 1024, 1024))
SECONDS = 0.3  # of multiplying each shape, a round


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def peak() -> side.Figures:
    """GFLOP/s of each product, the best of as many runs as fit in the time."""
    import torch

    found = dict[str, float]()
    for m, k, n in SHAPES:
        a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        times = max(1, 10**8 // (2 * m * k * n))
        best, until = 0.0, time.perf_counter() + SECONDS
        while (started := time.perf_counter()) < until:
            for _ in range(times):
                torch.mm(a, b, out=out)
            best = max(best, times * 2 * m * k * n / (time.perf_counter() - started) / 1e9)
        found[f"{m}x{k}x{n}"] = best
    return {**found, "gflops": max(found.values())}


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    options = parser.parse_args()
    with side.base(options.root, options.threads) as (base, scratch):
        import torch

        from harness.generate import generate
        from harness.train import descend

        settings = {"prompts": PROMPTS, "group": GROUP, "beta": BETA, "lr": LR}
        run, method = side.open_run(base, scratch, "grpo", 1, LIMIT, **settings)
        method.setup(run)
        optimizer, policy = method.optimizer(run.policy), run.policy
        eos, pad = run.tokenizer.eos_token_id, run.tokenizer.pad_token_id

        def loss(part: Any) -> Any:
            value, metrics = method.loss(policy, part)
            return value + policy.aux_loss(part), metrics | {"loss": value.item()}

        def step() -> side.Figures:
            """GFLOP/s of the step and of each of its phases."""
            prompts = [run.prompt_ids(p) for p in run.problems(PROMPTS)]
            keys = [f"{run.position}/{row}" for row in range(PROMPTS * GROUP)]
            with torch.no_grad():
                samples, sampling = timed(lambda: generate(policy, prompts, GROUP, keys, LIMIT, eos, pad))
                batch, preparing = timed(lambda: method.batch(run))
                _, scoring = timed(lambda: run.score(run.reference, batch))
            _, training = timed(lambda: descend(run, optimizer, batch, loss, method.flops_per_token(policy)))
            forward, tokens, completed = policy.flops_per_token() / 1e9, batch.size(), int(batch.mask_BT.sum())
            passed = completed + (tokens - completed) // GROUP
            return {
                "gflops": forward * (passed + tokens + 3 * tokens) / (preparing + training),
                "sampling": forward * (sum(map(len, prompts)) + sum(map(len, samples.tokens))) / sampling,
                "scoring": forward * tokens / scoring,
                "training": 3 * forward * tokens / training,
                "seconds": preparing + training,
                "sampling_seconds": sampling,
                "scoring_seconds": scoring,
                "training_seconds": training,
                "tokens": tokens,
            }

        step()
        measured = side.measure({"peak": peak, "step": step}, options.pairs)
        ratios = side.ratios(measured["step"]["gflops"], measured["peak"]["gflops"])
        phases = ("sampling", "scoring", "training")
        shares = {phase: side.ratios(measured["step"][phase], measured["peak"]["gflops"]) for phase in phases}
        side.report(
            "roofline",
            options.threads,
            ratio=statistics.median(ratios),
            ratio_rounds=side.spread(ratios),
            shares={phase: side.spread(share) for phase, share in shares.items()},
            ours=side.spreads(measured["step"]),
            peak_gflops=side.spreads(measured["peak"]),
            weights_a_token_meets=policy.flops_per_token() // 2,
            model=base.facts(),
            task=side.TASK,
            prompts=PROMPTS,
            group=GROUP,
            max_new_tokens=LIMIT,
            beta=BETA,
            pairs=options.pairs,
            dtype="float32",
            compile=False,
        )


if __name__ == "__main__":
    main()
