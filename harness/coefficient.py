"""What a loss makes of each token: the gradient coefficient of DeepSeekMath's unified paradigm (arXiv:2402.03300, eq. 5).

    ∇J(θ) = E 1/|y| Σ_t GC(x, y, t) ∇log π_θ(y_t|x, y_<t)

Measured, not declared: the gradient of the loss with respect to the logits of a token is -w(onehot(y_t) - π) for every loss that
reads nothing but log π_θ(y_t), and GC = w·B·|y|. A loss that reads the whole distribution, such as soft distillation, moves other
tokens too; there GC is that of the token y_t alone, -∂L/∂logit(y_t)/π(y_t)·B·|y|.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.method import B, Method
from harness.policy import Policy

EXPLAINED = 1e-3  # share of the gradient's square that may be about other tokens than those taken
SURE = 1e-3  # 1 - π(y_t), below which a token has no gradient to read a coefficient off


def coefficient(method: Method[B], policy: Policy, batch: B, rows: int) -> dict[str, Any]:
    """GC on the first rows of a batch; policy, gradients and random state stay as they are.

    over                 "tokens" if the loss reads taken tokens only, "vocabulary" otherwise
    tokens               how many were measured
    mean, low, high      of GC
    up, down             mean of the positive and of the negative ones, None where there are none
    share_up, share_down, zero
                         shares of tokens by the sign of GC
    error                of the policy's gradient, rebuilt from the coefficients, against autograd's: |difference|/|gradient|
    """
    part = batch[torch.arange(min(rows, len(batch)))].trimmed()
    with torch.enable_grad(), torch.random.fork_rng(), policy.reading() as read:
        loss, _ = method.loss(policy, part)
        gradients = torch.autograd.grad(loss, [logits_BTV for _, logits_BTV in read], retain_graph=True)
        surrogate, coefficients, unexplained, total = torch.zeros((), device=policy.device), list[Tensor](), 0.0, 0.0
        for (tokens_BT, logits_BTV), gradient_BTV in zip(read, gradients, strict=True):
            last = slice(-logits_BTV.shape[1], None)  # columns that there are logits of
            mask_BT, tokens_BT = part.mask_of(tokens_BT)[:, last], tokens_BT[:, last]
            pi_BTV = logits_BTV.detach().double().softmax(-1)
            taken_BTV = torch.zeros_like(pi_BTV).scatter_(-1, tokens_BT[..., None], 1.0)
            towards_BTV = taken_BTV - pi_BTV
            w_BT = -(gradient_BTV * towards_BTV).sum(-1) / towards_BTV.square().sum(-1).clamp(min=1e-12)
            unexplained += float((gradient_BTV + w_BT[..., None] * towards_BTV).square().sum())
            total += float(gradient_BTV.double().square().sum())
            logp_BT = (logits_BTV.log_softmax(-1) * taken_BTV).sum(-1)
            surrogate = surrogate - (w_BT * mask_BT * logp_BT).sum()
            at_token_BT = -(gradient_BTV * taken_BTV).sum(-1) / (pi_BTV * taken_BTV).sum(-1)
            weight_BT = len(part) * mask_BT.sum(-1, keepdim=True)
            measured_BT = mask_BT.bool() & ((taken_BTV * towards_BTV).sum(-1) > SURE)
            coefficients.append(torch.stack([w_BT * weight_BT, at_token_BT * weight_BT])[:, measured_BT])
        over_tokens = unexplained <= EXPLAINED * total
        error = difference(policy, loss, surrogate) if over_tokens else None
    gc_N = torch.cat(coefficients, -1)[0 if over_tokens else 1]
    return {"over": "tokens" if over_tokens else "vocabulary", **summary(gc_N), "error": error}


def difference(policy: Policy, loss: Tensor, surrogate: Tensor) -> float:
    """|∇a - ∇b| / |∇a| over the policy's weights."""
    weights = [p for p in policy.parameters() if p.requires_grad]
    a, b = (
        torch.cat([g.flatten() for g in torch.autograd.grad(x, weights, retain_graph=True, materialize_grads=True)])
        for x in (loss, surrogate)
    )
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def summary(gc_N: Tensor) -> dict[str, Any]:
    up_N, down_N = gc_N[gc_N > 1e-6], gc_N[gc_N < -1e-6]
    n = max(1, len(gc_N))
    return {
        "tokens": len(gc_N),
        "mean": float(gc_N.mean()) if len(gc_N) else None,
        "low": float(gc_N.min()) if len(gc_N) else None,
        "high": float(gc_N.max()) if len(gc_N) else None,
        "up": float(up_N.mean()) if len(up_N) else None,
        "down": float(down_N.mean()) if len(down_N) else None,
        "share_up": len(up_N) / n,
        "share_down": len(down_N) / n,
        "zero": 1 - (len(up_N) + len(down_N)) / n,
    }
