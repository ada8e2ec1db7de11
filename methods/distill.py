"""Distillation: learning from a teacher's completions, or from its probabilities.

targets = "completions"   data augmentation (as in DeepSeek-R1, arXiv:2501.12948, §2.4)
    data   x ~ task,  y_1 … y_k ~ π_T(·|x), of which those that the verifier finds right
    loss   L(θ) = E 1/|y| Σ_t -log π_θ(y_t|s_t)

targets = "soft"          knowledge distillation (Hinton et al. 2015, arXiv:1503.02531, §2)
    data   x ~ task,  y = the worked solution that comes with x
    loss   L(θ) = E 1/|y| Σ_t [ -(1-α) log π_θ(y_t|s_t) + α T² KL(π_T^T(·|s_t) ‖ π_θ^T(·|s_t)) ],   π^T = softmax(logits/T)

targets = "own"           on-policy distillation (Agarwal et al. 2023, arXiv:2306.13649, with λ = 1 and the reverse KL)
    data   x ~ task,  y ~ π_θ(·|x), fresh every step
    loss   L(θ) = E 1/|y| Σ_t KL(π_θ(·|s_t) ‖ π_T(·|s_t)),   no gradient through the sampling

Every KL is exact, summed over the vocabulary. The mean over tokens within a completion favours short ones: the fixed point of
"completions" is π_T(y|right)/|y|, renormalised. Hinton et al. weigh soft against hard targets without a fixed form; this is
the convex one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from harness import ops
from harness.method import Batch, Count, Method, Metrics, Positive, Share
from harness.policy import Policy, taken
from harness.space import LogUniform, PowersOfTwo, Uniform

if TYPE_CHECKING:
    from harness.run import Run


@dataclass(kw_only=True)
class Distill(Method[Batch]):
    data = "a teacher's verified completions (soft: worked solutions; own: completions of its own)"
    reward = "none; the verifier filters (soft, own: the teacher's distribution at every token)"
    objective = "-E log π(y|x)  or  E[-(1-α) log π + α·T²·KL(π_T‖π)]  or  E KL(π‖π_T)"

    models = ("teacher",)

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-5
    teacher: str = "teacher"  # a preset or a folder
    targets: Literal["completions", "soft", "own"] = "completions"
    prompts: Annotated[Count, PowersOfTwo(8, 256)] = 64  # x a batch
    group: Annotated[Count, PowersOfTwo(1, 16)] = 1  # k
    alpha: Annotated[Share, Uniform(0.0, 1.0)] = 0.5  # α
    temperature: Annotated[Positive, LogUniform(0.5, 8.0)] = 1.0  # T

    model: Policy = field(init=False, repr=False)  # π_T

    def setup(self, run: Run) -> None:
        self.model = run.model(self.teacher)

    def batch(self, run: Run) -> Batch:
        if self.targets == "completions":
            return run.verified(self.model, self.prompts, self.group, "teacher")
        problems = run.problems(self.prompts)
        batch = run.encode(problems) if self.targets == "soft" else run.rollouts(problems, self.group)
        run.meter.score(batch.size(), self.model.flops_per_token())
        return batch

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.targets == "completions":
            return -ops.mean(policy.logp(batch.tokens_BT, batch.mask_BT), batch.mask_BT), {}
        logits_BTV = policy.logits(batch.tokens_BT)
        with torch.no_grad():
            teacher_BTV = self.model.logits(batch.tokens_BT)
        if self.targets == "own":
            kl = ops.mean(ops.exact_kl(logits_BTV, teacher_BTV), batch.mask_BT)
            return kl, {"kl_teacher": kl.item()}
        hard = -ops.mean(taken(logits_BTV, batch.tokens_BT), batch.mask_BT)
        t = self.temperature
        kl = ops.mean(ops.exact_kl(teacher_BTV / t, logits_BTV / t), batch.mask_BT)
        return (1 - self.alpha) * hard + self.alpha * t**2 * kl, {"hard": hard.item(), "kl_teacher": kl.item()}

    def card(self) -> dict[str, str]:
        soft = f"α = {self.alpha:g}, T = {self.temperature:g}"
        return {
            "samples from": {"completions": "the teacher", "soft": "the task's solutions", "own": "π_θ"}[self.targets],
            "reward": "kept if the verifier finds it right" if self.targets == "completions" else "none",
            "aggregation": "mean over tokens, then over completions",
            "KL": {"completions": "none", "soft": f"exact, teacher‖π, {soft}", "own": "exact, π‖teacher"}[self.targets],
            "passes": "1 over each batch",
        }


METHOD = Distill
