"""Supervised fine-tuning (Ouyang et al. 2022, arXiv:2203.02155, step 1), with an optional penalty against forgetting.

    data   x ~ task,  y = the worked solution that comes with x
           source = "start": y_1 … y_k ~ π_ref(·|x), those that the verifier finds right: rejection-sampled fine-tuning
           (Yuan et al. 2023, arXiv:2308.01825);  source = "policy": the same from π_θ, online
    loss   L(θ) = 1/B Σ_b 1/|y_b| Σ_t [ -log π_θ(y_bt|x_b, y_b<t) + β KL(π_θ(·|x_b, y_b<t) ‖ π_ref(·|x_b, y_b<t)) ]

The KL is exact, summed over the vocabulary, at the tokens of the solution. The mean is over sequences, each counting the
same; implementations that average over the tokens of the batch weigh long solutions more. For rejection sampling that means
a pull towards short answers: the fixed point is π_ref(y|right)/|y|, renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from harness import ops
from harness.method import Batch, Count, Method, Metrics, NonNegative, Positive
from harness.policy import Policy, taken
from harness.space import LogUniform, PowersOfTwo, Uniform

if TYPE_CHECKING:
    from harness.run import Run


@dataclass(kw_only=True)
class SFT(Method[Batch]):
    data = "worked solutions that come with the task (or verified completions of the start, or of its own)"
    reward = "none; the verifier filters completions"
    objective = "-E log π(y|x) + β·KL(π‖π_ref)"

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-5
    prompts: Annotated[Count, PowersOfTwo(8, 256)] = 64  # B
    group: Annotated[Count, PowersOfTwo(1, 16)] = 1  # k
    beta: Annotated[NonNegative, Uniform(0.0, 1.0)] = 0.0  # β
    source: Literal["solutions", "start", "policy"] = "solutions"

    reference: Policy = field(init=False, repr=False)  # π_ref

    def setup(self, run: Run) -> None:
        self.reference = run.reference

    def batch(self, run: Run) -> Batch:
        match self.source:
            case "solutions":
                batch = run.encode(run.problems(self.prompts))
            case "start":
                batch = run.verified(self.reference, self.prompts, self.group, "start")
            case "policy":
                batch = run.verified(run.policy, self.prompts, self.group, "policy")
        if self.beta:
            run.meter.score(batch.size(), self.reference.flops_per_token())
        return batch

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, Metrics]:
        if not self.beta:
            return -ops.mean(policy.logp(batch.tokens_BT, batch.mask_BT), batch.mask_BT), {}
        logits_BTV = policy.logits(batch.tokens_BT)
        with torch.no_grad():
            logits_ref_BTV = self.reference.logits(batch.tokens_BT)
        kl = ops.mean(ops.exact_kl(logits_BTV, logits_ref_BTV), batch.mask_BT)
        return -ops.mean(taken(logits_BTV, batch.tokens_BT), batch.mask_BT) + self.beta * kl, {"kl": kl.item()}

    def card(self) -> dict[str, str]:
        return {
            "samples from": {"solutions": "the task's solutions", "start": "π_ref", "policy": "π_θ"}[self.source],
            "reward": "none" if self.source == "solutions" else "kept if the verifier finds it right",
            "aggregation": "mean over tokens, then over completions",
            "KL": f"exact, in the loss, β = {self.beta:g}" if self.beta else "none",
            "passes": "1 over each batch",
        }


METHOD = SFT
