"""Sampled tokens a second, ours and those of transformers' generate().

32 prompts of the arithmetic task, 8 completions each, in one batch, at temperature 1 from the whole distribution, each until it
ends or has 48 tokens. Tokens are those of completions, EOS included, without what pads a completion that has ended. The same
weights, float32, no compilation. Ours also returns the log-probability of every token; generate() is not asked for it.

ratio       our tokens a second over those of generate() with its default cache, a DynamicCache
ratio_best  the same over the better of that and a static cache
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from benchmarks import _side_by_side as side

PROMPTS, GROUP, LIMIT = 32, 8, 48
CACHES: dict[str, dict[str, Any]] = {"generate": {}, "generate, static cache": {"cache_implementation": "static"}}


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    parser.add_argument("--updates", type=side.positive, default=3, metavar="N", help="batches a round (default: %(default)s)")
    options = parser.parse_args()
    with side.base(options.root, options.threads) as (base, scratch):
        import torch
        from transformers.utils import logging

        from harness.generate import generate

        logging.set_verbosity_error()
        run, _ = side.open_run(base, scratch, "grpo", 1, LIMIT)
        policy, tokenizer = run.policy.eval(), run.tokenizer
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        prompts = [run.prompt_ids(p) for p in run.problems(PROMPTS)]
        rounds = itertools.count()

        def ours() -> side.Figures:
            n, tokens = next(rounds), 0
            started = time.perf_counter()
            for batch in range(options.updates):
                keys = [f"{n}/{batch}/{row}" for row in range(PROMPTS * GROUP)]
                tokens += sum(map(len, generate(policy, prompts, GROUP, keys, LIMIT, eos, pad).tokens))
            elapsed = time.perf_counter() - started
            return {"tokens_per_second": tokens / elapsed, "tokens_per_batch": tokens / options.updates}

        def theirs(**cache: Any) -> side.Figures:
            torch.manual_seed(next(rounds))
            width, tokens = max(map(len, prompts)), 0
            ids_PT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
            seen_PT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            started = time.perf_counter()
            for _ in range(options.updates):
                out_BT = policy.model.generate(
                    input_ids=ids_PT,
                    attention_mask=seen_PT,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=LIMIT,
                    num_return_sequences=GROUP,
                    eos_token_id=eos,
                    pad_token_id=pad,
                    disable_compile=True,
                    **cache,
                )
                for row in out_BT[:, width:].tolist():
                    tokens += row.index(eos) + 1 if eos in row else len(row)
            elapsed = time.perf_counter() - started
            return {"tokens_per_second": tokens / elapsed, "tokens_per_batch": tokens / options.updates}

        sides = {"ours": ours} | {name: lambda cache=cache: theirs(**cache) for name, cache in CACHES.items()}
        for warm_up in sides.values():
            warm_up()
        measured = side.measure(sides, options.pairs)
        side.report(
            "rollout_vs_generate",
            options.threads,
            **side.against(measured, "tokens_per_second"),
            model=base.facts(),
            task=side.TASK,
            prompts=PROMPTS,
            group=GROUP,
            max_new_tokens=LIMIT,
            pairs=options.pairs,
            updates=options.updates,
            dtype="float32",
            compile=False,
        )


if __name__ == "__main__":
    main()
