"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    data   x ~ task,  y_1 … y_K ~ π_ref(·|x),  pairs (x, y⁺, y⁻) as a noisy annotator ranks them
    loss   L(θ) = -E log σ(β [log π_θ(y⁺|x)/π_ref(y⁺|x) - log π_θ(y⁻|x)/π_ref(y⁻|x)])
           aggregation = "mean", the length-normalised form:  β/|y⁺| log … - β/|y⁻| log …, the mean log-ratio of a token

Departures: the pairs are drawn as they are needed, so none is used twice and the data is as large as the budget allows;
`source = "policy"` draws them from π_θ instead (online DPO, Guo et al. 2024, arXiv:2402.04792, with the verifier as annotator).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.method import Count, Method, Metrics, Positive, Share
from harness.policy import Policy
from harness.space import Choice, LogUniform, PowersOfTwo
from methods._preferences import Pairs, sample_pairs

if TYPE_CHECKING:
    from harness.run import Run


@dataclass
class DPOBatch(Pairs):
    logp_ref_BT: Tensor  # log π_ref(y⁺_t)
    rejected_ref_BT: Tensor  # log π_ref(y⁻_t)


@dataclass(kw_only=True)
class DPO(Method[DPOBatch]):
    data = "pairs of its start's completions, ranked once (online: of its own)"
    reward = "the annotator's ranking: the verifier, with noise"
    objective = "-E log σ(β[log π/π_ref (y⁺) - log π/π_ref (y⁻)])"

    first_loss = math.log(2)

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-6
    prompts: Annotated[Count, PowersOfTwo(8, 128)] = 32  # sets a batch
    group: Annotated[int, Field(ge=2), PowersOfTwo(2, 16)] = 8  # K
    beta: Annotated[Positive, LogUniform(0.01, 5.0)] = 0.1  # β
    noise: Share = 0.0  # of the annotator's rankings that are wrong
    aggregation: Annotated[Literal["sum", "mean"], Choice(("sum", "mean"))] = "sum"
    source: Literal["start", "policy"] = "start"

    reference: Policy = field(init=False, repr=False)  # π_ref

    def setup(self, run: Run) -> None:
        self.reference = run.reference

    def batch(self, run: Run) -> DPOBatch:
        sampler = run.policy if self.source == "policy" else self.reference
        pairs = sample_pairs(run, sampler, self.prompts, self.group, self.noise)
        return DPOBatch(
            **vars(pairs),
            logp_ref_BT=run.score(self.reference, pairs.chosen()),
            rejected_ref_BT=run.score(self.reference, pairs.rejected()),
        )

    def loss(self, policy: Policy, batch: DPOBatch) -> tuple[Tensor, Metrics]:
        logp_BT = policy.logp(batch.tokens_BT, batch.mask_BT)
        rejected_BT = policy.logp(batch.rejected_BT, batch.rejected_mask_BT)
        chosen_B = self.aggregate(logp_BT - batch.logp_ref_BT, batch.mask_BT)
        rejected_B = self.aggregate(rejected_BT - batch.rejected_ref_BT, batch.rejected_mask_BT)
        loss_B = preference_loss(chosen_B, rejected_B, self.beta)
        margin_B = self.beta * (chosen_B - rejected_B)
        return loss_B.mean(), {
            "rewards/chosen": self.beta * chosen_B.mean().item(),
            "rewards/rejected": self.beta * rejected_B.mean().item(),
            "rewards/margins": margin_B.mean().item(),
            "rewards/accuracies": (margin_B > 0).float().mean().item(),
            "logps/chosen": (logp_BT * batch.mask_BT).sum(-1).mean().item(),
            "logps/rejected": (rejected_BT * batch.rejected_mask_BT).sum(-1).mean().item(),
        }

    def aggregate(self, log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B] the log-ratio of a completion: the sum over its tokens, or their mean."""
        total_B = (log_ratio_BT * mask_BT).sum(-1)
        return total_B if self.aggregation == "sum" else total_B / mask_BT.sum(-1)

    def card(self) -> dict[str, str]:
        return {
            "samples from": "π_ref" if self.source == "start" else "π_θ",
            "reward": f"ranking by the verifier, {self.noise:.0%} of it wrong",
            "baseline": "the other of the pair",
            "aggregation": f"{self.aggregation} over tokens, mean over pairs",
            "KL": f"implicit, β = {self.beta:g}",
            "passes": "1 over each pair",
        }


def preference_loss(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """[B] -log σ(β (c - r)), c and r the log-ratios log π_θ/π_ref of the chosen and the rejected completion."""
    return -F.logsigmoid(beta * (chosen_B - rejected_B))


METHOD = DPO
