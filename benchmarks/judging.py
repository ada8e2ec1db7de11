"""Seconds to sample completions of the programs task and to judge them: both at once, against one after the other.

A program is executed in the sandbox, which is another process. While this one would wait, it samples: completions are judged as
they end. 250 prompts, 4 completions of each, as an evaluation has them, sampled 512 at a time. No verdict is remembered from one
side to the other.

ratio        seconds one after the other, over seconds of both at once
ratio_batch  the same of 32 prompts, 8 completions of each, as a batch of GRPO has them: they are sampled together, so only those
             that end early are judged meanwhile
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from benchmarks import _side_by_side as side

EVALUATION, BATCH = (250, 4), (32, 8)  # prompts, completions of each


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    parser.set_defaults(threads=1)  # of a run, unless its comparison says otherwise: another core is free for the sandbox
    options = parser.parse_args()
    with side.base(options.root, options.threads) as (base, _):
        from harness import sandbox
        from harness.generate import generate
        from harness.judging import judged
        from harness.policy import Policy
        from tasks import programs

        policy, tokenizer = Policy.load(base.folder, "float32")
        policy.eval()
        level, rounds = sandbox.level(), itertools.count()

        def timed(prompts: int, group: int, waits: bool) -> side.Figures:
            programs.execute.cache_clear()
            task = replace(programs.TASK, waits=waits)
            problems = task.problems("train")[:prompts]
            ids = [tokenizer(p.prompt)["input_ids"] for p in problems]
            pair = next(rounds) // 2  # both sides sample the same
            keys = [f"{pair}/{row}" for row in range(prompts * group)]
            limits = task.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id
            asked = [p for p in problems for _ in range(group)]
            started = time.perf_counter()
            _, _, verdicts = judged(task, asked, tokenizer, lambda heard: generate(policy, ids, group, keys, *limits, heard))
            elapsed = time.perf_counter() - started
            return {"seconds": elapsed, "right": sum(v.correct for v in verdicts) / len(verdicts)}

        def measured(prompts: int, group: int) -> dict[str, side.Rounds]:
            sides = {
                name: lambda waits=waits: timed(prompts, group, waits) for name, waits in (("ours", True), ("in turn", False))
            }
            for warm_up in sides.values():
                warm_up()
            return side.measure(sides, options.pairs)

        evaluation, batch = (side.against(measured(*size), "seconds", more=False) for size in (EVALUATION, BATCH))
        sandbox.close()
        side.report(
            "judging",
            options.threads,
            ratio=evaluation["ratio"],
            ratio_rounds=evaluation["ratio_rounds"],
            ratio_batch=batch["ratio"],
            ratio_batch_rounds=batch["ratio_rounds"],
            **{name: {k: found[k] for k in ("ours", "theirs")} for name, found in (("evaluation", evaluation), ("batch", batch))},
            model=base.facts(),
            sandbox=level,
            pairs=options.pairs,
            dtype="float32",
            compile=False,
        )


if __name__ == "__main__":
    main()
