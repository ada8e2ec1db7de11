"""Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, §2.2): D modules in a chain, each one token further ahead.

    h_i^k = Block_k( M_k [ norm(Emb(y_{i+k})) ; norm(h_i^{k-1}) ] ),    k = 1 … D,  h^0 the model's last hidden state
    logits of y_{i+k+1} = Head(norm(h_i^k)),    embedding and head shared with the model
    loss  λ/D Σ_k 1/B Σ_b 1/|y_b| Σ_t -log π^k(y_bt | y_b<t-k)

In pretraining the loss shapes the whole model; in post-training (weight `post_weight`, 0 unless the model's config says
otherwise) the trunk, the embedding and the head are held fixed, so that the modules follow the policy and never move it.
What they predict is used to draft tokens (harness/speculative.py); log-probabilities are the model's own, with or without them.

The layers are transformers' `MtpLayer`; `MtpModel`, which chains them there, has no training loss and always makes them
mixtures of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor, nn

from harness import ops
from harness.moe import Amount


@dataclass(frozen=True, kw_only=True)
class Weights:
    """λ in pretraining and in post-training."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    weight: Amount = 0.0
    post_weight: Amount = 0.0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.post_weight < 0:
            raise ValueError("weight and post_weight must not be negative")


class MTP(nn.Module):
    """D modules for a model, of the kind of its last layer; they are part of it as `model.mtp`."""

    def __init__(self, model: Any, depth: int):
        from transformers.modeling_layers import MtpLayer  # takes seconds, which those who only list runs need not wait

        super().__init__()
        config, layers = model.config, model.base_model.layers
        self.layers = nn.ModuleList(
            MtpLayer(config, type(layers[-1]), type(model.base_model.norm), len(layers) - 1) for _ in range(depth)
        )
        self.apply(model._init_weights)

    def hidden(self, model: Any, tokens_BT: Tensor, hidden_BTD: Tensor, detached: bool = False) -> list[Tensor]:
        """h^1 … h^D, [B, T-k, D] each: at position i of h^k, what is known of the token at i+k+1. Those with T > k alone.

        tokens_BT    what the model has read
        hidden_BTD   its last hidden state there
        detached     no gradient flows to embedding and trunk
        """
        from transformers.masking_utils import create_causal_mask

        base = model.base_model
        embedded_BTD = base.embed_tokens(tokens_BT)
        if detached:
            embedded_BTD, hidden_BTD = embedded_BTD.detach(), hidden_BTD.detach()
        found = list[Tensor]()
        for k, layer in zip(range(1, tokens_BT.shape[1]), self.layers, strict=False):
            next_BTD = embedded_BTD[:, k:]
            position_1T = torch.arange(next_BTD.shape[1], device=tokens_BT.device)[None]
            mask = create_causal_mask(model.config, next_BTD, None, None, position_ids=position_1T)
            turns = base.rotary_emb(next_BTD, position_1T)
            hidden_BTD = layer(next_BTD, hidden_BTD[:, :-1], turns, mask, position_1T, None)
            found.append(hidden_BTD)
        return found

    def loss(self, model: Any, tokens_BT: Tensor, hidden_BTD: Tensor, mask_BT: Tensor, detached: bool) -> Tensor:
        """[] 1/D Σ_k of the mean over sequences of the mean over tokens of -log π^k.

        tokens_BT    whole sequences; the model has read all but the last token
        hidden_BTD   [B, T-1, D] its last hidden state
        mask_BT      1 at the tokens to predict
        """
        head_VD = model.get_output_embeddings().weight
        head_VD = head_VD.detach() if detached else head_VD
        total = torch.zeros((), device=tokens_BT.device)
        for k, h_BTD in enumerate(self.hidden(model, tokens_BT[:, :-1], hidden_BTD, detached), start=1):
            nll_BT = F.cross_entropy((h_BTD @ head_VD.t()).float().transpose(1, 2), tokens_BT[:, k + 1 :], reduction="none")
            total = total + ops.mean(nll_BT, mask_BT[:, k + 1 :])
        return total / len(self.layers)
