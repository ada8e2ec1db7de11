"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300, §4.1.1, eq. 3 and 4).

    data       x ~ task,  y_1 … y_G ~ π_old(·|x)
    reward     r_i = verify(x, y_i)
    advantage  Â_i = (r_i - mean(r_1…r_G)) / (std(r_1…r_G) + ε₀),  the same for every token of y_i
    loss       L(θ) = -1/G Σ_i 1/|y_i| Σ_t [ min(ρ_it Â_i, clip(ρ_it, 1-ε, 1+ε) Â_i) - β k3_it ]
               ρ_it  = π_θ(y_it|x, y_i<t) / π_old(y_it|x, y_i<t)
               k3_it = π_ref/π_θ - log(π_ref/π_θ) - 1

k3 has π_ref over π_θ: its value is then unbiased for KL(π_θ‖π_ref) when y ~ π_θ (its gradient, as part of the loss, is that of
KL(π_ref(·|s)‖π_θ(·|s)) at the states s that π_θ visits). Some expositions print the inverse ratio, whose value is not
unbiased. One gradient step a batch, as in the paper, so ρ = 1 and the clip never acts.

Variants by their options: Dr. GRPO (arXiv:2503.20783) is scale = "none", aggregation = "constant"; DAPO's normalisation and
clip-higher (arXiv:2503.14476, eq. 8) are aggregation = "token", clip_high = 0.28, beta = 0.

Where another engine sampled, each token's term has that token's weight (harness/vllm_engine.py).

Departures: std is the sample standard deviation (the paper does not say; TRL and verl use it).

Other rewards by `source`:  "random" flips a coin instead of asking the verifier, the control that shows what sampling and
sharpening do by themselves;  "format" pays for reasoning before answering, whatever is said (the format reward of DeepSeek-R1
alone, arXiv:2501.12948, §2.2.2);  "trace" pays for a right answer whose reasoning holds too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from harness import ops
from harness.method import Batch, Count, Method, Metrics, NonNegative, Positive, Rollouts
from harness.policy import Policy
from harness.space import Choice, LogUniform, PowersOfTwo, Uniform

if TYPE_CHECKING:
    from harness.run import Run

Scale = Literal["std", "population-std", "leave-one-out", "none"]

Aggregation = Literal["sequence", "token", "constant"]
AGGREGATIONS = {
    "sequence": "mean over tokens, then over completions",
    "token": "mean over all tokens",
    "constant": "sum over tokens over a constant",
}

Source = Literal["verifier", "random", "format", "trace"]
SOURCES = {
    "verifier": "the verifier",
    "random": "a coin",
    "format": "reasoning before answering, right or wrong",
    "trace": "the verifier, of answer and reasoning",
}

EPSILON_0 = 1e-6  # ε₀


@dataclass
class GRPOBatch(Batch):
    logp_old_BT: Tensor  # log π_old; 0 outside the completion
    logp_ref_BT: Tensor  # log π_ref; 0 outside the completion, and where β = 0
    advantage_B: Tensor  # Â
    weight_BT: Tensor  # what a token counts for, against the mean over its completion


@dataclass(kw_only=True)
class GRPO(Method[GRPOBatch]):
    data = "groups of G completions of its own, fresh every step"
    reward = "the verifier (controls: a coin, the format; or answer and reasoning)"
    objective = "-E[min(ρÂ, clip(ρ, 1±ε)Â) - β·KL(π‖π_ref)],  Â = (r - mean_group)/std_group"

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-6
    prompts: Annotated[Count, PowersOfTwo(4, 128)] = 16  # x a batch
    group: Annotated[int, Field(ge=2), PowersOfTwo(2, 64)] = 64  # G
    clip: Annotated[Positive, Uniform(0.05, 0.5)] = 0.2  # ε
    clip_high: Annotated[Positive | None, Uniform(0.1, 1.0)] = None  # ε above 1, where it differs
    beta: Annotated[NonNegative, LogUniform(1e-3, 1.0)] = 0.04  # β
    scale: Annotated[Scale, Choice(("std", "none"))] = "std"
    aggregation: Annotated[Aggregation, Choice(tuple(AGGREGATIONS))] = "sequence"
    surrogate: Literal["clipped", "plain"] = "clipped"  # plain: the policy gradient, -Â log π_θ
    source: Source = "verifier"  # of r

    def batch(self, run: Run) -> GRPOBatch:
        y = run.rollouts(run.problems(self.prompts), group=self.group)
        r_PG = self.r(run, y).view(self.prompts, self.group)
        run.log({"frac_reward_zero_std": float((r_PG == r_PG[:, :1]).all(-1).float().mean())})
        return GRPOBatch(
            tokens_BT=y.tokens_BT,
            mask_BT=y.mask_BT,
            logp_old_BT=y.logp_BT,
            logp_ref_BT=run.score(run.reference, y) if self.beta else torch.zeros_like(y.logp_BT),
            advantage_B=advantages(r_PG, self.scale).flatten(),
            weight_BT=weights(y.mask_BT.sum(-1), self.aggregation, run.task.max_new_tokens)[:, None] * y.weight_BT,
        )

    def r(self, run: Run, y: Rollouts) -> Tensor:
        """[B] the reward, by its source."""
        match self.source:
            case "verifier":
                return y.reward_B
            case "random":
                coin = torch.full(y.reward_B.shape, 0.5)
                return torch.bernoulli(coin, generator=run.generator("coin")).to(y.reward_B)
            case "format":
                return y.formed_B
            case "trace":
                return y.reward_B * y.trace_B

    def loss(self, policy: Policy, batch: GRPOBatch) -> tuple[Tensor, Metrics]:
        logp_BT = policy.logp(batch.tokens_BT, batch.mask_BT)
        ratio_BT = (logp_BT - batch.logp_old_BT).exp()  # ρ
        objective_BT, clipped_BT = surrogate(ratio_BT, batch.advantage_B[:, None], self.clip, self.clip_high)
        if self.surrogate == "plain":
            objective_BT = batch.advantage_B[:, None] * logp_BT
        metrics = {"clip_ratio/region_mean": ops.mean(clipped_BT.float(), batch.mask_BT).item()}
        if self.beta:
            k3_BT = ops.kl(logp_BT, batch.logp_ref_BT, "k3")
            objective_BT = objective_BT - self.beta * k3_BT
            metrics["kl"] = ops.mean(k3_BT, batch.mask_BT).item()
        return -ops.mean(objective_BT * batch.weight_BT, batch.mask_BT), metrics

    def card(self) -> dict[str, str]:
        high = f", {self.clip_high:g} above" if self.clip_high else ""
        return {
            "samples from": "π_θ",
            "reward": SOURCES[self.source],
            "baseline": f"the mean of {self.group} completions"
            if self.scale != "leave-one-out"
            else "the mean of the other completions",
            "advantage": {"none": "not divided"}.get(self.scale, f"divided by {self.scale}"),
            "aggregation": AGGREGATIONS[self.aggregation],
            "KL": f"k3, in the loss, β = {self.beta:g}" if self.beta else "none",
            "clip": f"ε = {self.clip:g}{high}" if self.surrogate == "clipped" else "none",
            "passes": "1 over each batch",
        }


def advantages(reward_PG: Tensor, scale: Scale = "std") -> Tensor:
    """[P, G] the reward of each completion against its group's.

    std              (r - mean)/(std + ε₀), sample standard deviation (DeepSeekMath as TRL and verl have it)
    population-std   the same with the population's (dividing by G)
    leave-one-out    baseline and standard deviation of the other G - 1, undivided where those are equal (NeMo-RL)
    none             r - mean (Dr. GRPO, arXiv:2503.20783)
    """
    differs_P1 = (reward_PG != reward_PG[:, :1]).any(-1, keepdim=True)  # equal rewards are 0 apart, whatever their mean rounds to
    centred_PG = (reward_PG - reward_PG.mean(-1, keepdim=True)) * differs_P1
    match scale:
        case "std":
            return centred_PG / (reward_PG.std(-1, keepdim=True) + EPSILON_0)
        case "population-std":
            return centred_PG / (reward_PG.std(-1, keepdim=True, correction=0) + EPSILON_0)
        case "leave-one-out":
            baseline_PG, std_PG = others(reward_PG)
            return (reward_PG - baseline_PG) / torch.where(std_PG > EPSILON_0, std_PG, 1.0)
        case "none":
            return centred_PG
    raise ValueError(f"scale must be std, population-std, leave-one-out or none, not {scale!r}")


def weights(length_B: Tensor, aggregation: Aggregation, longest: int) -> Tensor:
    """[B] what each completion counts for, so that the mean over sequences of the mean over tokens is the loss.

    sequence   1: every completion the same (DeepSeekMath)
    token      |y|/mean|y|: every token of the batch the same (DAPO)
    constant   |y|/longest: the sum over tokens over a constant (Dr. GRPO)
    """
    length_B = length_B.float()
    match aggregation:
        case "sequence":
            return torch.ones_like(length_B)
        case "token":
            return length_B / length_B.mean()
        case "constant":
            return length_B / longest


def others(reward_PG: Tensor) -> tuple[Tensor, Tensor]:
    """[P, G] mean and sample standard deviation of the group without each completion."""
    g = reward_PG.shape[-1]
    rest_PGG = reward_PG[:, None, :].expand(-1, g, -1)[:, ~torch.eye(g, dtype=torch.bool)].view(-1, g, g - 1)
    std_PG = rest_PGG.std(-1) if g > 2 else torch.zeros_like(reward_PG)
    return rest_PGG.mean(-1), std_PG


def surrogate(ratio: Tensor, advantage: Tensor, clip: float, clip_high: float | None = None) -> tuple[Tensor, Tensor]:
    """min(ρÂ, clip(ρ, 1-ε, 1+ε_high)Â), of the ratio's shape, and where the clip holds the gradient back."""
    high = clip if clip_high is None else clip_high
    unclipped, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + high) * advantage
    return torch.min(unclipped, clipped), clipped < unclipped


METHOD = GRPO
