"""No training: what is evaluated is the start. For base, again and best_of_n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.method import Batch, Method, Metrics, Positive
from harness.policy import Policy

if TYPE_CHECKING:
    from harness.run import Run


@dataclass(kw_only=True)
class Untrained(Method[Batch]):
    data = "none"
    reward = "none"
    objective = "0"

    lr: Positive = 1.0

    def batch(self, run: Run) -> None:  # noqa: ARG002
        return None

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        return torch.zeros(()), {}
