"""The few formulas that methods share. Each has a test against published numbers or brute force."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[] the mean over completion tokens within each sequence, then over sequences:  1/B Σ_b 1/|y_b| Σ_t x_bt."""
    return ((x_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1)).mean()


def kl(logp: Tensor, logp_ref: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Schulman's per-token estimators of KL(π‖π_ref) for y ~ π, of the shape of `logp`.

        k1 = log π/π_ref        unbiased, may be negative
        k2 = k1²/2              biased, low variance
        k3 = π_ref/π - 1 - log π_ref/π      unbiased, never negative

    Source: joschu.net/blog/kl-approx.html. Raises ValueError for another estimator.
    """
    k1 = logp - logp_ref
    match estimator:
        case "k1":
            return k1
        case "k2":
            return k1.square() / 2
        case "k3":
            return (-k1).expm1() + k1
    raise ValueError(f"estimator must be k1, k2 or k3, not {estimator!r}")


def exact_kl(logits_BTV: Tensor, logits_ref_BTV: Tensor) -> Tensor:
    """[B, T] KL(π‖π_ref) of the two next-token distributions, summed over the vocabulary."""
    logp_BTV, ref_BTV = logits_BTV.log_softmax(-1), logits_ref_BTV.log_softmax(-1)
    return (logp_BTV.exp() * (logp_BTV - ref_BTV)).sum(-1)


def entropy(logits_BTV: Tensor) -> Tensor:
    """[B, T] of each next-token distribution, in nats."""
    logp_BTV = logits_BTV.log_softmax(-1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1)


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] x less its mean over its standard deviation (n - 1), of and at the masked tokens; 0 elsewhere."""
    x_N = x_BT[mask_BT.bool()]
    return (x_BT - x_N.mean()) / (x_N.std(correction=min(1, len(x_N) - 1)) + 1e-8) * mask_BT


def last_token(mask_BT: Tensor) -> Tensor:
    """[B, 1] position of the last completion token."""
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (positions_T * mask_BT).argmax(-1, keepdim=True)
