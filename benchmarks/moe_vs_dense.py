"""What a mixture of experts costs in time, against a dense model with as many active parameters.

The presets `moe` and `dense`, random weights, float32, no compilation. A training step is the log-probabilities of 64 sequences
of 48 tokens, what balances the experts, backward, and AdamW. A sampled token is one of 256 completions of 48 tokens, none of
which is let end before.

ratio           seconds of a training step, moe over dense: target: at most 1.6
ratio_sampling  seconds of a sampled token, moe over dense: target: at most 1.6
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _side_by_side as side

ROWS, TOKENS = 64, 48
PROMPTS, GROUP = 32, 8


def main() -> None:
    parser = side.parser(__doc__)
    parser.add_argument("--updates", type=side.positive, default=5, metavar="N", help="steps a round (default: %(default)s)")
    options = parser.parse_args()
    import torch

    from harness import models
    from harness.generate import generate
    from harness.method import Batch
    from harness.policy import Policy
    from harness.pretrain import character_tokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer: Any = character_tokenizer()
    tokens_BT = torch.randint(3, len(tokenizer), (ROWS, TOKENS))
    batch = Batch(tokens_BT, torch.ones(tokens_BT.shape))
    prompts = [tokenizer("438+57=")["input_ids"]] * PROMPTS
    never = len(tokenizer)  # no token, so nothing ends

    def figures(policy: Policy, optimizer: torch.optim.Optimizer) -> side.Figures:
        started = time.perf_counter()
        for _ in range(options.updates):
            (-policy.logp(batch.tokens_BT).mean() + policy.aux_loss(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            policy.after_step()
        trained = time.perf_counter()
        keys = [str(row) for row in range(PROMPTS * GROUP)]
        generate(policy, prompts, GROUP, keys, TOKENS, never, tokenizer.pad_token_id)
        sampled = time.perf_counter() - trained
        return {"step_ms": 1e3 * (trained - started) / options.updates, "token_us": 1e6 * sampled / (PROMPTS * GROUP * TOKENS)}

    sides = dict[str, Any]()
    for name in ("moe", "dense"):
        policy = Policy(models.new(models.presets()[name].architecture, tokenizer))
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
        sides[name] = lambda policy=policy, optimizer=optimizer: figures(policy, optimizer)
        sides[name]()
    measured = side.measure(sides, options.pairs)
    step, token = (side.ratios(measured["moe"][key], measured["dense"][key]) for key in ("step_ms", "token_us"))
    side.report(
        "moe_vs_dense",
        options.threads,
        ratio=side.spread(step)["median"],
        ratio_rounds=side.spread(step),
        ratio_sampling=side.spread(token)["median"],
        ratio_sampling_rounds=side.spread(token),
        **{name: side.spreads(rounds) for name, rounds in measured.items()},
        rows=ROWS,
        tokens=TOKENS,
        completions=PROMPTS * GROUP,
        pairs=options.pairs,
        updates=options.updates,
        dtype="float32",
        compile=False,
    )


if __name__ == "__main__":
    main()
