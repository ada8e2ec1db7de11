"""RLHF with proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347, eq. 7; Ouyang et al. 2022, arXiv:2203.02155).

    data       x ~ task,  y ~ π_old(·|x), gone through `epochs` times in `minibatches`
    reward     r_t = -β log(π_old(y_t|s_t) / π_ref(y_t|s_t)) + [t = |y|] r(x, y)
               r(x, y) = r_φ(x, y), a reward model fitted to preferences (methods/_preferences.py), or the verifier's
    advantage  Â_t = δ_t + γλ Â_{t+1},   δ_t = r_t + γ V(s_{t+1}) - V(s_t)                    (GAE, arXiv:1506.02438, eq. 16)
    loss       L(θ) = -E 1/|y| Σ_t min(ρ_t Â_t, clip(ρ_t, 1-ε, 1+ε) Â_t),   ρ_t = π_θ(y_t|s_t) / π_old(y_t|s_t)
               L(ψ) = 1/2 E 1/|y| Σ_t max((V_ψ - R_t)², (clip(V_ψ, V_old ± ε) - R_t)²),   R_t = Â_t + V_old(s_t)

As in "The N Implementation Details of RLHF with PPO" (Huang et al. 2023): r_φ is normalised, a completion that was cut off gets
r_φ = -1, Â is whitened, the critic starts from the reward model. Departures: r_φ has mean 0 and standard deviation 1 on held-out
pairs, not on fresh samples; means are over tokens, then over completions, not over the tokens of a
minibatch; Â is whitened over the batch, not over each minibatch; policy and critic are separate networks, each with its own
learning rate and clipping of its gradient.

Where another engine sampled, Â_t in L(θ) is times the token's weight (harness/vllm_engine.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from harness import ops
from harness.method import Batch, Count, Method, Metrics, NonNegative, Positive, Rollouts, Share
from harness.policy import Policy, Scalar
from harness.space import Integer, LogUniform, PowersOfTwo, Uniform
from methods._preferences import LearnedReward, final

if TYPE_CHECKING:
    from harness.run import Run

CUT_OFF = -1.0  # r of a completion without EOS


@dataclass
class PPOBatch(Batch):
    logp_old_BT: Tensor  # log π_old
    value_old_BT: Tensor  # V_old
    advantage_BT: Tensor  # Â, whitened; where another engine sampled, times a token's weight against π_old
    return_BT: Tensor  # R


@dataclass(kw_only=True)
class PPO(LearnedReward, Method[PPOBatch]):
    data = "completions of its own, each batch gone through several times"
    reward = "a reward model fitted to preferences (or the verifier), and a KL penalty at every token"
    objective = "-E[min(ρÂ, clip(ρ, 1±ε)Â)],  Â by GAE from a critic fitted to E[(V - R)²]"

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-6
    critic_lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-5
    prompts: Annotated[Count, PowersOfTwo(16, 512)] = 128  # x a batch
    epochs: Annotated[Count, Integer(1, 8)] = 4
    minibatches: Annotated[Count, PowersOfTwo(1, 8)] = 4
    clip: Annotated[Positive, Uniform(0.05, 0.5)] = 0.2  # ε
    beta: Annotated[NonNegative, LogUniform(1e-3, 1.0)] = 0.05  # β
    gamma: Annotated[Share, Uniform(0.9, 1.0)] = 1.0  # γ
    lam: Annotated[Share, Uniform(0.8, 1.0)] = 0.95  # λ
    surrogate: Literal["clipped", "unclipped", "plain"] = "clipped"  # plain: the policy gradient, -Â log π_θ, in one step a batch
    source: Literal["learned", "verifier"] = "learned"  # of r

    reference: Policy = field(init=False, repr=False)  # π_ref
    critic: Scalar = field(init=False, repr=False)  # V_ψ
    reward_model: Scalar = field(init=False, repr=False)  # r_φ

    def __post_init__(self) -> None:
        if self.surrogate == "plain" and self.passes() != (1, 1):
            raise ValueError('surrogate = "plain" is a gradient at π_old alone: it needs epochs = 1 and minibatches = 1')

    def setup(self, run: Run) -> None:
        self.reference = run.reference
        self.critic = Scalar(run.reference)
        if self.source == "learned":
            self.reward_model = Scalar(run.reference)

    def prepare(self, run: Run) -> None:
        if self.source == "learned":
            self.fit(run, self.reward_model)
            self.critic.load_state_dict(self.reward_model.state_dict())

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict()} | (
            {"reward_model": self.reward_model.state_dict()} if self.source == "learned" else {}
        )

    def restore(self, run: Run, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        if self.source == "learned":
            self.reward_model.load_state_dict(state["reward_model"])
            run.freeze("reward model", self.reward_model)

    def optimizer(self, policy: Policy) -> Optimizer:
        trained = [(policy, self.lr), (self.critic, self.critic_lr)]
        return AdamW([{"params": list(m.parameters()), "lr": lr} for m, lr in trained], weight_decay=0.0, fused=True)

    def flops_per_token(self, policy: Policy) -> int:
        return policy.flops_per_token() + self.critic.flops_per_token()

    def passes(self) -> tuple[int, int]:
        return self.epochs, self.minibatches

    def batch(self, run: Run) -> PPOBatch:
        y = run.rollouts(run.problems(self.prompts))
        r_B = self.outcome(run, y)
        kl_BT = ops.kl(y.logp_BT, run.score(self.reference, y), "k1")
        reward_BT = (-self.beta * kl_BT).scatter_add(1, ops.last_token(y.mask_BT), r_B[:, None])
        value_BT = run.score(self.critic, y, "before")
        advantage_BT = gae(reward_BT, value_BT, y.mask_BT, self.gamma, self.lam)
        return_BT = advantage_BT + value_BT
        run.log({"kl": ops.mean(kl_BT, y.mask_BT).item(), "explained_variance": explained(value_BT, return_BT, y.mask_BT)})
        whitened_BT = ops.whiten(advantage_BT, y.mask_BT) * y.weight_BT
        return PPOBatch(y.tokens_BT, y.mask_BT, y.logp_BT, value_BT, whitened_BT, return_BT)

    def outcome(self, run: Run, y: Rollouts) -> Tensor:
        """[B] r(x, y)."""
        if self.source == "verifier":
            return y.reward_B
        r_B = final(run.score(self.reward_model, y, "after"), y.mask_BT)
        run.log({"reward_model/reward": r_B.mean().item()})
        return torch.where(y.ended_B.bool(), r_B, CUT_OFF)

    def loss(self, policy: Policy, batch: PPOBatch) -> tuple[Tensor, Metrics]:
        logp_BT = policy.logp(batch.tokens_BT, batch.mask_BT)
        ratio_BT = (logp_BT - batch.logp_old_BT).exp()  # ρ
        unclipped_BT = ratio_BT * batch.advantage_BT
        clipped_BT = ratio_BT.clamp(1 - self.clip, 1 + self.clip) * batch.advantage_BT
        objective_BT = {
            "clipped": torch.min(unclipped_BT, clipped_BT),
            "unclipped": unclipped_BT,
            "plain": batch.advantage_BT * logp_BT,
        }[self.surrogate]
        value_BT = self.critic.before(batch.tokens_BT)
        near_BT = batch.value_old_BT + (value_BT - batch.value_old_BT).clamp(-self.clip, self.clip)
        error_BT = torch.max((value_BT - batch.return_BT).square(), (near_BT - batch.return_BT).square())

        policy_loss = -ops.mean(objective_BT, batch.mask_BT)
        value_loss = ops.mean(error_BT, batch.mask_BT) / 2
        return policy_loss + value_loss, {
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "clip_ratio/region_mean": ops.mean((clipped_BT < unclipped_BT).float(), batch.mask_BT).item(),
        }

    def card(self) -> dict[str, str]:
        learned = f"a reward model, of {self.share:.0%} of the budget" if self.source == "learned" else "the verifier"
        return {
            "samples from": "π_θ",
            "reward": learned,
            "baseline": f"a critic, GAE with γ = {self.gamma:g}, λ = {self.lam:g}",
            "advantage": "whitened over the batch",
            "aggregation": "mean over tokens, then over completions",
            "KL": f"k1, in the reward at every token, β = {self.beta:g}",
            "clip": f"ε = {self.clip:g}" if self.surrogate == "clipped" else "none",
            "passes": f"{self.epochs} in {self.minibatches} minibatches",
        }


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """[B, T]  Â_t = δ_t + γλ Â_{t+1},  δ_t = r_t + γ V_{t+1} - V_t,  both 0 after the last token.

    Masked positions neither count nor discount: the recurrence steps over them, and they hold 0.
    """
    advantage = torch.zeros_like(reward)
    next_advantage = next_value = torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        on = mask[:, t].bool()
        delta = reward[:, t] + gamma * next_value - value[:, t]
        advantage[:, t] = torch.where(on, delta + gamma * lam * next_advantage, 0.0)
        next_advantage = torch.where(on, advantage[:, t], next_advantage)
        next_value = torch.where(on, value[:, t], next_value)
    return advantage


def explained(value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(R - V)/Var(R) over the completion tokens: 1 for a perfect critic, 0 for the mean; 0 of a constant R."""
    value_N, return_N = value_BT[mask_BT.bool()], return_BT[mask_BT.bool()]
    spread = return_N.var()
    return float(1 - (return_N - value_N).var() / spread) if spread > 0 else 0.0


METHOD = PPO
