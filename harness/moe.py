"""Mixtures of experts: who is asked, and what keeps the load even.

    s_te    score of expert e for token t, from the router;  the K best of s_te + b_e are asked, and weigh by s_te alone
    f_e     E/(K·T) Σ_t [e is asked for t]        1 for every expert when the load is even
    P_e     1/T Σ_t s_te / Σ_e' s_te'
    MaxVio  max_e f_e - 1                         of one batch, or of all held-out tokens (global)

Balancing, one of (DeepSeek-V3, arXiv:2412.19437, §2.1.2; Wang et al. 2024, arXiv:2408.15664):

    none
    sequence   α Σ_e f_e P_e over the tokens of each sequence, then the mean over sequences, added to any loss
    batch      the same over all tokens that pass through the model at once. It is not linear in the batch: with several
               micro-batches it is the mean of theirs
    bias       after every step  b_e ← b_e + u·sign(mean load - load_e): the bias selects, it never weighs. The load is that of
               the last steps (a moving sum that forgets 1/16 a step): a batch here is small and of one kind, and the signs of
               single batches even out how often an expert is over its mean, not how much

Which one is part of a model's config (`balancing`), so that it acts in pretraining and in every method alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

Amount = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]

KEPT = 15 / 16  # of the load of the steps before
COLLAPSED = 0.1  # of the mean load: an expert below it is hardly ever asked


@dataclass(frozen=True, kw_only=True)
class Balancing:
    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["none", "sequence", "batch", "bias"] = "none"
    alpha: Amount = 0.0  # α
    rate: Amount = 0.0  # u

    def __post_init__(self) -> None:
        needs = {"none": None, "sequence": "alpha", "batch": "alpha", "bias": "rate"}
        if self.kind not in needs:
            raise ValueError(f"kind must be one of {', '.join(needs)}, not {self.kind!r}")
        needed = needs[self.kind]
        for name in ("alpha", "rate"):
            value: float = getattr(self, name)
            if not value > 0 if name == needed else value != 0:
                raise ValueError(f"{self.kind!r} needs {needed} above 0 and nothing else" if needed else f"none takes no {name}")


@dataclass
class Routing:
    """What a router did with N tokens: E experts, of whom K are asked."""

    router: nn.Module
    logits_NE: Tensor
    asked_NK: Tensor  # indices

    def shares(self) -> Tensor:
        """[N, E] scores, of all experts 1 together."""
        scores_NE = self.logits_NE.sigmoid()
        return scores_NE / scores_NE.sum(-1, keepdim=True)

    def counts(self, mask_N: Tensor) -> Tensor:
        """[E] how often each expert is asked for the masked tokens."""
        asked_MK = self.asked_NK[mask_N.bool()]
        return torch.bincount(asked_MK.flatten(), minlength=self.logits_NE.shape[-1]).float()

    def entropies(self, mask_N: Tensor) -> Tensor:
        """[M] of the shares, in nats, of each masked token: log E when the router does not mind who is asked. No gradient."""
        share_ME = self.shares().detach()[mask_N.bool()]
        return -share_ME.xlogy(share_ME).sum(-1)


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of all layers that have experts, in their order: those with a weight of [E, D]."""
    named = [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]
    return [m for m in named if isinstance(weight := getattr(m, "weight", None), Tensor) and weight.ndim == 2]


@contextmanager
def hooked(model: nn.Module, hook: Callable[[Any, Any, Any], Any]) -> Generator[None]:
    """Call it after every router, for as long as the block lasts; what it returns, if anything, is what the router says."""
    handles = [router.register_forward_hook(hook) for router in routers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched(model: nn.Module) -> Generator[list[Routing]]:
    """What each router that says logits, weights and experts does in the forward pass of the block."""
    found = list[Routing]()

    def note(router: nn.Module, _inputs: Any, out: Any) -> None:
        if isinstance(out, tuple) and len(out) >= 3:
            found.append(Routing(router, out[0], out[2]))

    with hooked(model, note):
        yield found


def spare(model: nn.Module) -> int:
    """How many experts a token can be kept from, whichever they are, with K left to ask."""
    return min(r.topk_group * (len(r.weight) // r.num_group) - r.top_k for r in cast(list[Any], routers(model)))


@contextmanager
def without_the_best(model: nn.Module, r: int) -> Generator[None]:
    """Keep every token from the r experts that it would ask first, and ask the next K (DeepSeekMoE, arXiv:2401.06066, Fig. 4).

    r   at most `spare`; otherwise a forward pass raises ValueError
    """

    def ask_others(router: Any, _inputs: Any, out: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        scores_NE = out[0].sigmoid()
        choice_NE = scores_NE + router.e_score_correction_bias
        choice_NE = choice_NE.scatter(1, choice_NE.topk(r, dim=-1).indices, -torch.inf)
        size = choice_NE.shape[-1] // router.num_group
        two_best_NG = choice_NE.unflatten(1, (-1, size)).topk(2, dim=-1).values.sum(-1)
        open_NG = torch.zeros_like(two_best_NG).scatter(1, two_best_NG.topk(router.topk_group, dim=-1).indices, 1.0)
        choice_NE = choice_NE.masked_fill(open_NG.repeat_interleave(size, 1) == 0, -torch.inf)
        best_NK, asked_NK = choice_NE.topk(router.top_k, dim=-1)
        if best_NK.isinf().any():
            raise ValueError(f"without the best {r} there are fewer than {router.top_k} experts to ask")
        weights_NK = scores_NE.gather(1, asked_NK)
        if router.norm_topk_prob:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
        return out[0], weights_NK * router.routed_scaling_factor, asked_NK

    with hooked(model, ask_others):
        yield


def balance_loss(routing: Sequence[Routing], mask_BT: Tensor, balancing: Balancing) -> Tensor:
    """[] α Σ_e f_e P_e, summed over layers; `sequence` or `batch` says over which tokens."""
    b, t = mask_BT.shape
    rows = (b, t) if balancing.kind == "sequence" else (1, b * t)
    total = torch.zeros((), device=mask_BT.device)
    mask_RT1 = mask_BT.reshape(*rows, 1)
    n_R1 = mask_RT1.sum(1).clamp(min=1)
    for layer in routing:
        experts, k = layer.logits_NE.shape[-1], layer.asked_NK.shape[-1]
        asked_NE = torch.zeros_like(layer.logits_NE).scatter_(1, layer.asked_NK, 1.0)
        f_RE = (asked_NE.view(*rows, experts) * mask_RT1).sum(1) * experts / (k * n_R1)
        p_RE = (layer.shares().view(*rows, experts) * mask_RT1).sum(1) / n_R1
        total = total + (f_RE * p_RE).sum(-1).mean()
    return balancing.alpha * total


@torch.no_grad()
def adjust(router: Any, counts_E: Tensor, rate: float) -> None:
    """b_e ← b_e + u·sign(mean load - load_e)."""
    router.e_score_correction_bias += rate * torch.sign(counts_E.mean() - counts_E)


def relative(counts_LE: Tensor) -> Tensor:
    """[L, E] load over the mean load of the layer."""
    return counts_LE / counts_LE.mean(-1, keepdim=True).clamp(min=1e-9)


def columns(counts_LE: Tensor) -> dict[str, float]:
    """What to plot of a batch: MaxVio and the least load, of the worst layer, and how many experts are hardly ever asked."""
    load_LE = relative(counts_LE)
    return {
        "moe/max_violation": float((load_LE.max(-1).values - 1).max()),
        "moe/min_load": float(load_LE.min()),
        "moe/collapsed": float((load_LE < COLLAPSED).sum()),
    }
