"""Tokens a second of supervised fine-tuning, ours and those of TRL's SFTTrainer.

Worked solutions of the arithmetic task, 64 sequences a step, the loss on completions only, one gradient step each.
Unpacked, both sides get the same sequences in the same batches. Tokens are those of prompts and completions, EOS included,
without padding. The same weights, float32, no compilation, no gradient checkpointing.

ratio       our tokens a second over TRL's, which pads as we do
ratio_best  the same with whichever of TRL's settings that were tried is the fastest, packing among them: `packed` keeps
            the sequences of a row apart, `wrapped` does not (they see each other, and some are cut in two)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _side_by_side as side

SEQUENCES, LR = 64, 1e-6


@dataclass(frozen=True)
class Packing:
    """How TRL fills its rows."""

    strategy: str
    width: int  # tokens a row
    passes: int = 1  # a gradient step


SETTINGS: dict[str, Packing | None] = {
    "trl": None,
    "trl, packed": Packing("bfd", 512),
    "trl, packed, 4 passes": Packing("bfd", 512, passes=4),
    "trl, wrapped": Packing("wrapped", 128),
}


def ours(base: side.Base, scratch: Path, updates: int) -> side.Figures:
    """One run of `harness.train.train`; the first step is not timed, nor what follows the last."""
    seconds, tokens = side.trained(base, scratch, "sft", updates, 1, "trained_tokens", prompts=SEQUENCES, lr=LR)
    return {"tokens_per_second": tokens / seconds, "tokens_per_step": tokens / updates}


def theirs(base: side.Base, scratch: Path, updates: int, packing: Packing | None) -> side.Figures:
    """One SFTTrainer.train() on the sequences that ours had, or more where they are packed; the first step is not timed."""
    from datasets import Dataset
    from trl import SFTTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    from benchmarks import _trl
    from harness import models

    _trl.quiet()
    model, tokenizer = models.load(base.folder)
    with TemporaryDirectory(dir=scratch) as folder:
        problems = side.stream(base, Path(folder), SEQUENCES * (updates + 1) * (2 if packing else 1))
        data = Dataset.from_dict({"prompt": [p.prompt for p in problems], "completion": [p.solution for p in problems]})
        mean = statistics.mean(len(tokenizer(p.prompt + p.solution)["input_ids"]) + 1 for p in problems)
        args = config(Path(folder), updates, packing, mean)
        trainer: Any = SFTTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        timed = trainer.train_dataset["input_ids"][rows : rows * (updates + 1)]
        assert len(timed) == rows * updates
        tokens = sum(map(len, timed))
        seconds = _trl.seconds(trainer)
    return {"tokens_per_second": tokens / seconds, "tokens_per_step": tokens / updates}


def config(folder: Path, updates: int, packing: Packing | None, mean: float) -> Any:
    """TRL's arguments. Packed, a step has about as many tokens as unpacked, `mean` a sequence."""
    from trl import SFTConfig  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    from benchmarks import _trl

    arguments: dict[str, Any] = {
        **_trl.QUIET,
        **_trl.EQUAL,
        "output_dir": str(folder),
        "max_steps": updates + 1,
        "per_device_train_batch_size": SEQUENCES,
        "completion_only_loss": True,
        "learning_rate": LR,
        "train_sampling_strategy": "sequential",
    }
    if packing:
        arguments |= {
            "packing": True,
            "packing_strategy": packing.strategy,
            "max_length": packing.width,
            "per_device_train_batch_size": max(1, round(SEQUENCES * mean / packing.width / packing.passes)),
            "gradient_accumulation_steps": packing.passes,
        }
    return SFTConfig(**arguments)


def main() -> None:
    parser = side.with_model(side.parser(__doc__))
    parser.add_argument(
        "--updates",
        type=side.positive,
        default=15,
        metavar="N",
        help="timed steps a round; from 19 on we save on the way (default: 15)",
    )
    options = parser.parse_args()
    side.need("trl")
    with side.base(options.root, options.threads) as (base, scratch):

        def trl(packing: Packing | None) -> Callable[[], side.Figures]:
            return lambda: theirs(base, scratch, options.updates, packing)

        sides = {"ours": lambda: ours(base, scratch, options.updates)} | {name: trl(p) for name, p in SETTINGS.items()}
        measured = side.measure(sides, options.pairs)

        from benchmarks import _trl

        side.report(
            "sft_vs_trl",
            options.threads,
            **side.against(measured, "tokens_per_second"),
            model=base.facts(),
            task=side.TASK,
            sequences=SEQUENCES,
            pairs=options.pairs,
            updates=options.updates,
            dtype="float32",
            compile=False,
            trl_settings=_trl.settings(config(scratch, 1, None, 0.0)),
        )


if __name__ == "__main__":
    main()
