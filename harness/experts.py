"""Experts on a CPU, for training: a matrix product each, written where it belongs.

transformers multiplies all experts in one call of `grouped_mm`, which is what a GPU wants. On a CPU that call is a product each
too, but its parts are copied together afterwards, and gradients of the sorted rows are added element by element.

    N tokens, each asks K of E experts;  S = N·K rows sorted by expert, of which expert e has n_e
    y_i = Σ_k w_ik expert_k(x_i)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "product_each"


class Products(torch.autograd.Function):
    """[S, O] rows x_SI, of which the next n_e are multiplied with expert e's weight_EOI, transposed."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, weight_EOI: Tensor, n_E: list[int]) -> Tensor:
        ctx.save_for_backward(x_SI, weight_EOI)
        ctx.n_E = n_E
        out_SO = x_SI.new_empty(len(x_SI), weight_EOI.shape[1])
        for x, weight, out in zip(x_SI.split(n_E), weight_EOI, out_SO.split(n_E), strict=True):
            torch.mm(x, weight.T, out=out)
        return out_SO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_SO,), (x_SI, weight_EOI) = grads, ctx.saved_tensors
        dx_SI, dweight_EOI = torch.empty_like(x_SI), torch.empty_like(weight_EOI)
        rows = (tensor.split(ctx.n_E) for tensor in (grad_SO, x_SI, dx_SI))
        for grad, x, dx, weight, dweight in zip(*rows, weight_EOI, dweight_EOI, strict=True):
            torch.mm(grad, weight, out=dx)
            torch.mm(grad.T, x, out=dweight)
        return dx_SI, dweight_EOI, None


def product_each(experts: Any, x_ND: Tensor, asked_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """[N, D] the sum of what each token's experts say, weighed; by transformers on a GPU, with a bias or another layout."""
    other = not experts.has_gate or experts.has_bias or experts.is_transposed or experts.has_post_expert_norm
    if other or experts._is_expert_parallel or x_ND.device.type != "cpu" or x_ND.dtype != experts.down_proj.dtype:
        return grouped_mm_experts_forward(experts, x_ND, asked_NK, weight_NK)
    asked_S = asked_NK.flatten()
    order_S = asked_S.argsort()
    n_E = torch.bincount(asked_S, minlength=len(experts.down_proj)).tolist()
    gate_up_SF = Products.apply(x_ND.index_select(0, order_S // asked_NK.shape[1]), experts.gate_up_proj, n_E)
    found_SD = Products.apply(experts._apply_gate(gate_up_SF), experts.down_proj, n_E)
    weighed_SD = found_SD * weight_NK.flatten().index_select(0, order_S)[:, None]
    place_S = torch.empty_like(order_S).index_copy_(0, order_S, torch.arange(len(order_S)))
    return weighed_SD.index_select(0, place_S).view(*asked_NK.shape, -1).sum(1)


ALL_EXPERTS_FUNCTIONS.register(NAME, product_each)
