"""Muon (Jordan et al. 2024) for stacks of matrices: torch's own takes one matrix at a time, and transformers keeps a layer's
experts in one tensor.

    m ← μ m + (1-μ) g,   u = orthogonalised((1-μ) g + μ m),   w ← w - lr·√max(1, rows/columns) u

The same rule as `torch.optim.Muon` with its defaults, for every matrix of a stack; the orthogonalisation (Newton and Schulz's
iteration) is in float32 where torch's is in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95  # μ
A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic


class StackedMuon(torch.optim.Optimizer):
    """Parameters [N, R, C], of which each of the N·parts slices [R/parts, C] is a matrix of its own."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, ns_steps: int):
        super().__init__(params, {"lr": lr, "ns_steps": ns_steps, "parts": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                slices = (p.shape[0] * group["parts"], p.shape[1] // group["parts"], p.shape[2])
                update = orthogonalised(p.grad.lerp(momentum, MOMENTUM).view(slices), group["ns_steps"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * max(1, slices[1] / slices[2]) ** 0.5)


def orthogonalised(x_NRC: Tensor, steps: int) -> Tensor:
    """[N, R, C] every matrix with its singular values brought near 1."""
    tall = x_NRC.shape[1] > x_NRC.shape[2]
    x = x_NRC.mT if tall else x_NRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x
