"""What a cache of keys and values holds, and what fewer bits of it cost.

For each of the presets that are pretrained under --root: bytes per token by formula and as measured; and, with transformers'
`QuantizedCache` (backend hqq) of 8 and of 4 bits, |Δ log π| of the tokens of worked solutions read one by one, and the
share of arithmetic problems that greedy decoding solves. Every token is quantised, none is kept aside.

ratio  bytes per token of the first preset's cache over those of the last
"""

from __future__ import annotations

from typing import Any

from benchmarks import _side_by_side as side

PRESETS = ("dense", "moe", "mtp", "mla", "deepseek")
BITS = (8, 4)
GROUPS = 8  # numbers that share a scale: the rotary key of latent attention has eight


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    parser.add_argument(
        "--problems", type=side.positive, default=200, metavar="N", help="of the test split (default: %(default)s)"
    )
    options = parser.parse_args()
    side.need("hqq", group="bench-cache")
    import torch

    from harness import models, plugins
    from harness.policy import Policy

    torch.set_num_threads(options.threads)
    task = plugins.find("tasks", side.TASK)
    problems = task.problems("test")[: options.problems]
    tables = dict[str, dict[str, Any]]()
    for name, folder in side.pretrained(PRESETS, options.root).items():
        model, tokenizer = models.load(folder)
        policy = Policy(model).frozen()
        facts = models.facts(model)
        assert facts.cache_elements is not None
        table = dict[str, Any](elements=facts.cache_elements, formula_bytes=4 * facts.cache_elements, bytes=facts.cache_bytes)
        plain_N, solved = read(policy, tokenizer, task, problems, None)
        table["float32"] = {"solved": solved}
        for bits in BITS:
            logp_N, solved = read(policy, tokenizer, task, problems, bits)
            off_N = (logp_N - plain_N).abs()
            table[f"{bits} bits"] = {
                "solved": solved,
                "mean_change": side.rounded(float(off_N.mean())),
                "greatest_change": side.rounded(float(off_N.max())),
            }
        tables[name] = table
    sizes = [table["bytes"] for table in tables.values()]
    side.report("cache", options.threads, ratio=side.rounded(sizes[0] / sizes[-1]), problems=len(problems), presets=tables)


def read(policy: Any, tokenizer: Any, task: Any, problems: Any, bits: int | None) -> tuple[Any, float]:
    """[N] log-probability of the tokens of the problems' solutions, and the share of problems that greedy decoding solves."""
    import torch
    from transformers import DynamicCache, QuantizedCache

    def cache() -> Any:
        c = policy.model.config
        if bits is None:
            return DynamicCache(config=c)
        return QuantizedCache("hqq", c, nbits=bits, q_group_size=GROUPS, residual_length=1, axis_key=1, axis_value=1)

    logp, solved = list[Any](), 0
    with torch.no_grad():
        for width in sorted({len(p.prompt) for p in problems}):
            asked = [p for p in problems if len(p.prompt) == width]
            prompts_BT = torch.tensor(tokenizer([p.prompt for p in asked])["input_ids"])
            out_BT = policy.model.generate(
                input_ids=prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                past_key_values=cache(),
                do_sample=False,
                max_new_tokens=task.max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            for p, row in zip(asked, out_BT[:, width:].tolist(), strict=True):
                ended = tokenizer.eos_token_id in row
                text = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)] if ended else row)
                solved += task.judge(p, text, not ended).correct
            solutions = tokenizer([p.solution for p in asked])["input_ids"]
            length = min(map(len, solutions))
            tokens_BT = torch.cat([prompts_BT, torch.tensor([row[:length] for row in solutions])], 1)
            kept = cache()
            for t in range(tokens_BT.shape[1] - 1):
                logits_BV = policy.model(tokens_BT[:, t : t + 1], past_key_values=kept, use_cache=True).logits[:, -1]
                if t + 1 >= width:
                    logp.append(logits_BV.log_softmax(-1).gather(1, tokens_BT[:, t + 1 : t + 2]).squeeze(1))
    return torch.cat(logp), solved / len(problems)


if __name__ == "__main__":
    main()
