"""What multi-head latent attention costs in time when the cache is long, against multi-head attention of the same width.

The presets `mla` and `dense`, random weights, float32, no compilation. 64 rows have read 512 tokens; the time is that of one more
token in each, 32 times. Both are read by the native engine, MLA with its projections absorbed.

ratio        seconds of a sampled token, mla over dense: target: at most 1.3
ratio_stock  the same over transformers' own decoding of the dense model with its own cache
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _side_by_side as side

ROWS, READ, MORE = 64, 512, 32


def main() -> None:
    options = side.parser(__doc__).parse_args()
    import torch

    from harness import models
    from harness.engines import HF, engine
    from harness.policy import Policy
    from harness.pretrain import character_tokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    prompts_PT = torch.randint(3, len(tokenizer), (ROWS, READ))
    more_BN = torch.randint(3, len(tokenizer), (ROWS, MORE))

    @torch.no_grad()
    def figures(reader: Any) -> side.Figures:
        reader.read(prompts_PT, torch.ones_like(prompts_PT), 1, MORE)
        started = time.perf_counter()
        for n in range(MORE):
            reader.append(more_BN[:, n])
        return {"token_us": 1e6 * (time.perf_counter() - started) / (ROWS * MORE)}

    longer = {"max_position_embeddings": READ + MORE}
    policies = {
        name: Policy(models.new({**models.presets()[name].architecture, **longer}, tokenizer)).frozen()
        for name in ("mla", "dense")
    }
    sides = {
        "mla": lambda: figures(engine(policies["mla"])),
        "dense": lambda: figures(engine(policies["dense"])),
        "mla, stock": lambda: figures(HF(policies["mla"])),
        "dense, stock": lambda: figures(HF(policies["dense"])),
    }
    for warm_up in sides.values():
        warm_up()
    measured = side.measure(sides, options.pairs)
    ratio = {name: side.ratios(measured["mla"]["token_us"], measured[name]["token_us"]) for name in ("dense", "dense, stock")}
    side.report(
        "mla_vs_mha",
        options.threads,
        ratio=side.spread(ratio["dense"])["median"],
        ratio_rounds=side.spread(ratio["dense"]),
        ratio_stock=side.spread(ratio["dense, stock"])["median"],
        **{name: side.spreads(rounds) for name, rounds in measured.items()},
        rows=ROWS,
        cached=READ,
        pairs=options.pairs,
        dtype="float32",
        compile=False,
    )


if __name__ == "__main__":
    main()
