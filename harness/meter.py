"""What a run spends, counted the same way for every method, and the budget that ends it.

FLOPs are analytic: 2N for a token that passes forward, 6N for one that is trained on (forward and backward), with N the
weights a token meets. Charged: sampling, scoring, training, preparation, and every model that takes part (reference,
teacher, reward model, critic). Counted apart, not charged: pretraining the base, and evaluation.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field, fields
from typing import Annotated

import torch
from pydantic import ConfigDict, Field


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend. It stops after the batch that reaches the first limit."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    flops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    sampled_tokens: Annotated[int, Field(gt=0)] | None = None
    trained_tokens: Annotated[int, Field(gt=0)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    steps: Annotated[int, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise ValueError("needs a limit: one of " + ", ".join(f.name for f in fields(self)))

    def spent(self, meter: Meter, step: int) -> float:
        """The share of the budget that is gone: 1 or more ends the run."""
        used = {f.name: step if f.name == "steps" else getattr(meter, f.name) for f in fields(self)}
        return max(used[name] / limit for name, limit in vars(self).items() if limit is not None)


@dataclass
class Meter:
    sampled_tokens: int = 0  # completion tokens drawn, EOS included
    scored_tokens: int = 0  # other tokens that passed forward only: prompts read, references asked
    trained_tokens: int = 0  # tokens of the sequences trained on, prompt included, pad not
    verifier_calls: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    eval_seconds: float = 0.0
    peak_bytes: int = 0
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def sample(self, prompt_tokens: int, completion_tokens: int, flops_per_token: int) -> None:
        self.scored_tokens += prompt_tokens
        self.sampled_tokens += completion_tokens
        self.flops += flops_per_token * (prompt_tokens + completion_tokens)

    def score(self, tokens: int, flops_per_token: int) -> None:
        self.scored_tokens += tokens
        self.flops += flops_per_token * tokens

    def train(self, tokens: int, flops_per_token: int) -> None:
        self.trained_tokens += tokens
        self.flops += 3 * flops_per_token * tokens

    def lap(self, evaluation: bool = False) -> None:
        """Book the time since the last lap, on training or on evaluation."""
        now = time.perf_counter()
        if evaluation:
            self.eval_seconds += now - self._since
        else:
            self.seconds += now - self._since
        self._since = now

    def columns(self) -> dict[str, float]:
        """What every line of metrics.jsonl carries."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes())
        return {f"budget/{name}": value for name, value in self.state().items()}

    def state(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}


# the columns that differ between identical runs
CLOCK = ("budget/seconds", "budget/eval_seconds", "budget/peak_bytes", "ancestors/seconds")


def peak_bytes() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
