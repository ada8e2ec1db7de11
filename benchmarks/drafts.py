"""What drafting by multi-token prediction is worth in time, by the number of completions that are decoded at once.

The presets `mtp` and `deepseek`, as pretrained under --root; arithmetic, greedily, float32, no compilation. Both sides give
the same completions.

ratio   tokens a second with drafts over those without, one completion at a time, of the first preset that is there
ratios  the same for each preset and number of completions at once, with accepted drafts and tokens a round
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _side_by_side as side

PRESETS = ("mtp", "deepseek")
AT_ONCE = (1, 8, 64, 256)
FEWEST = 8  # problems a round


def main() -> None:
    options = side.with_model(side.parser(__doc__)).parse_args()
    import torch

    from harness import models, plugins
    from harness.generate import generate
    from harness.policy import Policy
    from harness.speculative import speculate

    torch.set_num_threads(options.threads)
    task = plugins.find("tasks", side.TASK)
    found = dict[str, dict[str, Any]]()
    for name, folder in side.pretrained(PRESETS, options.root).items():
        model, tokenizer = models.load(folder)
        policy = Policy(model).frozen()
        limits = task.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id
        for n in AT_ONCE:
            prompts = tokenizer([p.prompt for p in task.problems("test")[: max(n, FEWEST)]])["input_ids"]
            parts = [prompts[i : i + n] for i in range(0, len(prompts), n)]
            counts = dict[str, int]()

            def figures(decode: Any, parts: Any = parts) -> side.Figures:
                started, tokens = time.perf_counter(), 0
                for part in parts:
                    tokens += sum(map(len, decode(part)))
                return {"tokens_per_second": tokens / (time.perf_counter() - started)}

            def drafted(part: Any, policy: Any = policy, limits: Any = limits, counts: Any = counts) -> Any:
                y, drafts = speculate(policy, part, 1, None, *limits)
                counts.update({key: counts.get(key, 0) + value for key, value in vars(drafts).items()})
                return y.tokens

            def plain(part: Any, policy: Any = policy, limits: Any = limits) -> Any:
                return generate(policy, part, 1, None, *limits).tokens

            sides = {"drafted": lambda: figures(drafted), "plain": lambda: figures(plain)}
            for warm_up in sides.values():
                warm_up()
            measured = side.measure(sides, options.pairs)
            ratios = side.ratios(*(measured[key]["tokens_per_second"] for key in sides))
            found[f"{name}, {n} at once"] = {
                **side.spread(ratios),
                "accepted": side.rounded(counts["accepted"] / counts["drafted"]),
                "tokens_per_round": side.rounded(counts["tokens"] / counts["rounds"]),
            }
    side.report("drafts", options.threads, ratio=next(iter(found.values()))["median"], ratios=found, pairs=options.pairs)


if __name__ == "__main__":
    main()
