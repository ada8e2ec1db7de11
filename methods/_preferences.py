"""Preferences: pairs ranked by a simulated annotator, and the Bradley-Terry reward model fitted to them. For DPO and PPO.

    set       y_1 … y_K ~ π_s(·|x)
    pairs     of a set, each right completion beside a wrong one, none used twice: at most K/2 triples (x, y⁺, y⁻).
              The annotator is the verifier, which mistakes one for the other with probability `noise`
    loss      L(φ) = -E log σ(r_φ(x, y⁺) - r_φ(x, y⁻))            (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1)

Departure: Ouyang et al. take all K(K-1)/2 comparisons of a set; a verifier that says right or wrong ranks no others, and
completions used once keep the pairs independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW

from harness import ops
from harness.errors import TrustError
from harness.method import Batch, Count, Metrics, Positive, Rollouts, Share
from harness.policy import Policy, Scalar
from harness.run import some
from harness.space import Integer, LogUniform, PowersOfTwo, Uniform
from harness.train import descend

if TYPE_CHECKING:
    from harness.run import Run

HELD_OUT = 0.2  # of the pairs, for the reward model's accuracy
FEWEST = 16  # pairs that a reward model is fitted to
BINS = 5  # of predicted probability, for its calibration


@dataclass(kw_only=True)
class LearnedReward:
    """The options of a method whose reward is a model fitted to preferences."""

    share: Annotated[Share, Uniform(0.05, 0.5)] = 0.2  # of the budget; the reward model costs as much again
    sets: Count = 32  # of preferences, drawn at a time
    group: Annotated[int, Field(ge=2), PowersOfTwo(2, 16)] = 8  # K completions a set
    noise: Share = 0.0  # of the annotator's rankings that are wrong
    reward_lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-5
    reward_epochs: Annotated[Count, Integer(1, 4)] = 1

    def fit(self, run: Run, model: Scalar) -> None:
        pairs = collect(run, self.share, self.sets, self.group, self.noise)
        fit_reward_model(run, model, pairs, self.reward_lr, self.reward_epochs)
        run.freeze("reward model", model)


@dataclass
class Pairs(Batch):
    """y⁺ in `tokens_BT` and `mask_BT`, y⁻ in the fields below."""

    rejected_BT: Tensor
    rejected_mask_BT: Tensor

    def chosen(self) -> Batch:
        return Batch(self.tokens_BT, self.mask_BT)

    def rejected(self) -> Batch:
        return Batch(self.rejected_BT, self.rejected_mask_BT)


def sample_pairs(run: Run, sampler: Policy, prompts: int, group: int, noise: float) -> Pairs:
    """The pairs of the next sets of completions, at least one. Raises TrustError when the sampler is always right, or wrong."""

    def pairs() -> Pairs:
        y = run.sample(sampler, run.problems(prompts), group, "preferences")
        pairs = ranked(y, group, noise, run.generator(f"annotator/{run.position}"))
        run.log({"preferences/pairs": len(pairs)})
        return pairs

    return some(pairs, f"0 preference pairs in {prompts} sets of {group} completions: all of a set are right, or all wrong")


def ranked(y: Rollouts, group: int, noise: float, generator: torch.Generator) -> Pairs:
    """Right beside wrong within each group; each pair turned round with probability `noise`."""
    right_PG = y.reward_B.view(-1, group) == 1.0
    better, worse = list[int](), list[int]()
    for p, right_G in enumerate(right_PG.tolist()):
        rights, wrongs = ([p * group + g for g, right in enumerate(right_G) if right is what] for what in (True, False))
        for b, w in zip(rights, wrongs, strict=False):
            better.append(b)
            worse.append(w)
    turned_N = torch.rand(len(better), generator=generator) < noise
    better_N, worse_N = torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long)
    better_N, worse_N = torch.where(turned_N, worse_N, better_N), torch.where(turned_N, better_N, worse_N)
    return Pairs(y.tokens_BT[better_N], y.mask_BT[better_N], y.tokens_BT[worse_N], y.mask_BT[worse_N])


def collect(run: Run, share: float, prompts: int, group: int, noise: float) -> Pairs:
    """Pairs of the start's completions, until that share of the budget is gone."""
    parts = [sample_pairs(run, run.reference, prompts, group, noise)]
    if not run.spent():
        raise TrustError("the budget does not count what preferences cost; bound flops, sampled_tokens or seconds too")
    while run.spent() < share:
        parts.append(sample_pairs(run, run.reference, prompts, group, noise))
    return joined(parts)


def joined(parts: list[Pairs]) -> Pairs:
    """One batch of several, as wide as the widest."""

    def stacked(name: str) -> Tensor:
        columns = [getattr(part, name) for part in parts]
        width = max(column.shape[1] for column in columns)
        return torch.cat([F.pad(column, (0, width - column.shape[1])) for column in columns])

    return Pairs(*(stacked(name) for name in ("tokens_BT", "mask_BT", "rejected_BT", "rejected_mask_BT")))


def bradley_terry(model: Scalar, pairs: Pairs) -> tuple[Tensor, Metrics]:
    """-E log σ(r_φ(x, y⁺) - r_φ(x, y⁻))."""
    better_B = final(model.after(pairs.tokens_BT), pairs.mask_BT)
    worse_B = final(model.after(pairs.rejected_BT), pairs.rejected_mask_BT)
    loss = -F.logsigmoid(better_B - worse_B).mean()
    return loss, {"loss": loss.item()}


def final(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B] the value at the last completion token."""
    return x_BT.gather(1, ops.last_token(mask_BT)).squeeze(1)


def fit_reward_model(run: Run, model: Scalar, pairs: Pairs, lr: float, epochs: int, batch: int = 64) -> None:
    """Fit it to the pairs, all but the held-out ones, and normalise it to mean 0 and standard deviation 1 on the latter.

    Logs how often the model ranks the held-out pairs rightly, and how well it knows how often.
    """
    fitted = len(pairs) - round(HELD_OUT * len(pairs))
    if len(pairs) < FEWEST:
        raise TrustError(f"{len(pairs)} preference pairs are too few for a reward model ({FEWEST} at least); give more budget")
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    with torch.enable_grad():
        for rows in run.shuffled(fitted, epochs, max(1, fitted // batch)):
            descend(run, optimizer, pairs[rows], lambda part: bradley_terry(model, part), model.flops_per_token())
    held_out = pairs[torch.arange(fitted, len(pairs))]
    better_B = final(run.score(model, held_out.chosen(), "after"), held_out.mask_BT)
    worse_B = final(run.score(model, held_out.rejected(), "after"), held_out.rejected_mask_BT)
    margin_B, score_B = better_B - worse_B, torch.cat([better_B, worse_B])
    with torch.no_grad():
        model.head.bias.sub_(score_B.mean()).div_(score_B.std())
        model.head.weight.div_(score_B.std())
    run.meter.lap()
    run.log(
        {
            "reward_model/pairs": len(pairs),
            "reward_model/loss": float(-F.logsigmoid(margin_B).mean()),
            "reward_model/accuracy": float(ranked_rightly(margin_B).mean()),
            "reward_model/calibration_error": calibration_error(margin_B),
        }
    )


def ranked_rightly(margin_B: Tensor) -> Tensor:
    """[B] 1 where the better of a pair has more reward, 1/2 where both have the same."""
    return (margin_B.sign() + 1) / 2


def calibration_error(margin_B: Tensor) -> float:
    """How far the predicted probability σ(|margin|) of having ranked a pair rightly is from how often it has, over equal bins."""
    sure_B, right_B = margin_B.abs().sigmoid(), ranked_rightly(margin_B)
    bin_B = ((sure_B - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    gaps = [
        (sure_B[bin_B == k].mean() - right_B[bin_B == k].mean()).abs() * (bin_B == k).float().mean() for k in set(bin_B.tolist())
    ]
    return float(sum(gaps))
