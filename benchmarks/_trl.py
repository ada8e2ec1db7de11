"""TRL's trainers: silent, without anything that is not training, timed a step at a time."""

from __future__ import annotations

import time
import warnings
from typing import Any

import datasets
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
EQUAL = {"bf16": False, "gradient_checkpointing": False, "num_train_epochs": 1, "seed": 0}


def quiet() -> None:
    """No bars, no hints: stdout holds one line."""
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


class Clock(TrainerCallback):
    """When each optimiser step was done."""

    def __init__(self) -> None:
        self.ends = list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def seconds(trainer: Any) -> float:
    """Train; the time of all steps but the first, data and sampling included."""
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.ends[-1] - clock.ends[0]


def settings(args: Any) -> dict[str, Any]:
    """What of a trainer's arguments decides its speed."""
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "bf16",
        "torch_compile",
        "optim",
        "max_grad_norm",
        "learning_rate",
    )
    return {name: getattr(args.optim, "value", args.optim) if name == "optim" else getattr(args, name) for name in names}
