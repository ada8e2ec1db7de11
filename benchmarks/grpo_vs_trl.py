"""The time of a GRPO step, ours and that of TRL's GRPOTrainer.

A step is the same work on both sides: 32 prompts of the arithmetic task, 8 completions each of at most 48 tokens at
temperature 1 from the whole distribution, the task's verifier, advantages by the group's standard deviation, the
reference's log-probabilities for β = 0.04, one gradient step over all 256 completions. The same weights, float32, no
compilation, no vLLM.

ratio         TRL's seconds a step over ours; TRL with all 256 sequences in one pass, no gradient checkpointing
ratio_best    the same with whichever of TRL's settings that were tried is the fastest
memory_ratio  our peak memory over TRL's, each side alone in a process of its own: below 1 is better for us
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _side_by_side as side

PROMPTS, GROUP, LIMIT, BETA, LR = 32, 8, 48, 0.04, 1e-6
ROWS = PROMPTS * GROUP
SETTINGS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl, 2 passes": {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2},
    "trl, 4 passes": {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 4},
    "trl, static cache": {"cache_implementation": "static"},
}


def ours(base: side.Base, scratch: Path, updates: int) -> side.Figures:
    """One run of `harness.train.train`; the first step is not timed, nor what follows the last."""
    options = {"prompts": PROMPTS, "group": GROUP, "beta": BETA, "lr": LR}
    seconds, tokens = side.trained(base, scratch, "grpo", updates, LIMIT, "sampled_tokens", **options)
    return {"seconds_per_step": seconds / updates, "sampled_tokens_per_step": tokens / updates}


def theirs(base: side.Base, scratch: Path, updates: int, **settings: Any) -> side.Figures:
    """One GRPOTrainer.train() on the prompts that ours had; the first step is not timed."""
    from datasets import Dataset
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    from benchmarks import _trl
    from harness import models, plugins

    _trl.quiet()
    task = plugins.find("tasks", side.TASK)
    model, tokenizer = models.load(base.folder)
    tokenizer.padding_side = "left"
    lengths = list[int]()

    def verify(completions: list[str], completion_ids: list[list[int]], index: list[int], **_: Any) -> list[float | None]:
        lengths.extend(map(len, completion_ids))
        rows = zip(index, completions, completion_ids, strict=True)
        return [task.judge(problems[i], text, ids[-1] != tokenizer.eos_token_id).reward for i, text, ids in rows]

    with TemporaryDirectory(dir=scratch) as folder:
        problems = side.stream(base, Path(folder), PROMPTS * (updates + 1))
        data = Dataset.from_dict({"prompt": [p.prompt for p in problems], "index": list(range(len(problems)))})
        args = config(Path(folder), updates, **settings)
        trainer = GRPOTrainer(model, reward_funcs=verify, args=args, train_dataset=data, processing_class=tokenizer)
        seconds = _trl.seconds(trainer)
    return {"seconds_per_step": seconds / updates, "sampled_tokens_per_step": sum(lengths[ROWS:]) / updates}


def config(folder: Path, updates: int, **settings: Any) -> Any:
    from trl import GRPOConfig  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    from benchmarks import _trl

    arguments: dict[str, Any] = {
        **_trl.QUIET,
        **_trl.EQUAL,
        "output_dir": str(folder),
        "max_steps": updates + 1,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "num_generations": GROUP,
        "max_completion_length": LIMIT,
        "num_iterations": 1,
        "beta": BETA,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "learning_rate": LR,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
        "use_vllm": False,
    }
    return GRPOConfig(**arguments | settings)


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    parser.add_argument(
        "--updates", type=side.positive, default=3, metavar="N", help="timed steps a round (default: %(default)s)"
    )
    parser.add_argument("--alone", choices=("ours", "trl"), help="one side, once, in this process: what memory is measured with")
    options = parser.parse_args()
    side.need("trl")
    common = ("--root", options.root, "--threads", options.threads, "--updates", options.updates)
    peaks = {name: side.child("--alone", name, *common)["peak_mb"] for name in ("ours", "trl") if not options.alone}

    with side.base(options.root, options.threads) as (base, scratch):

        def trl(settings: dict[str, Any]) -> Callable[[], side.Figures]:
            return lambda: theirs(base, scratch, options.updates, **settings)

        sides = {"ours": lambda: ours(base, scratch, options.updates)} | {name: trl(s) for name, s in SETTINGS.items()}
        if options.alone:
            print(json.dumps({**sides[options.alone](), "peak_mb": side.rounded(side.peak_mb())}))
            return
        measured = side.measure(sides, options.pairs)

        from benchmarks import _trl

        side.report(
            "grpo_vs_trl",
            options.threads,
            **side.against(measured, "seconds_per_step", more=False),
            memory_ratio=side.rounded(peaks["ours"] / peaks["trl"]),
            peak_mb=peaks,
            model=base.facts(),
            task=side.TASK,
            prompts=PROMPTS,
            group=GROUP,
            max_new_tokens=LIMIT,
            beta=BETA,
            pairs=options.pairs,
            updates=options.updates,
            dtype="float32",
            compile=False,
            trl_settings=_trl.settings(config(scratch, 1)),
        )


if __name__ == "__main__":
    main()
