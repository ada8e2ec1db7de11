"""Reading a policy token by token: the logits of the next token of many rows at once.

`HF` reads any causal language model of transformers, through the cache that comes with it. `Native` reads the project's own
dense bases in float32 with the same arithmetic in a third of the operations: projections that share their input are one
multiplication, and keys and values are written into one buffer instead of growing a cache. Both take the weights from where
the policy holds them, anew for every batch of prompts, so there is nothing to keep in step.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from harness.policy import Policy


class Engine(Protocol):
    def read(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> Tensor:
        """[P·group, V] after prompts that are padded on the left, where `seen` is 0; each becomes `group` rows.

        limit   tokens that a row may yet be given
        """
        ...

    def append(self, token_B: Tensor) -> Tensor:
        """[B, V] after one more token in every row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, whose indices rise."""
        ...


def engine(policy: Policy) -> Engine:
    """The fastest that reads this policy."""
    return Native(policy) if Native.reads(policy) else HF(policy)


class HF:
    def __init__(self, policy: Policy):
        self.policy = policy
        self.cache = DynamicCache(config=policy.model.config)

    def read(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> Tensor:  # noqa: ARG002
        logits_PV = self._logits(prompts_PT, seen_PT, position(seen_PT))
        self.cache.batch_repeat_interleave(group)
        self.seen_BT = seen_PT.repeat_interleave(group, 0)
        self.position_B = self.seen_BT.sum(-1)
        return logits_PV.repeat_interleave(group, 0)

    def append(self, token_B: Tensor) -> Tensor:
        self.seen_BT = F.pad(self.seen_BT, (0, 1), value=1)
        logits_BV = self._logits(token_B[:, None], self.seen_BT, self.position_B[:, None])
        self.position_B = self.position_B + 1
        return logits_BV

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.seen_BT, self.position_B = self.seen_BT[rows], self.position_B[rows]

    def _logits(self, tokens_BT: Tensor, seen_BT: Tensor, position_BT: Tensor) -> Tensor:
        out = self.policy.model(
            input_ids=tokens_BT,
            attention_mask=seen_BT,
            position_ids=position_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1, : self.policy.vocabulary]


class Native:
    """H heads of size D, K of which have keys and values of their own; N columns for all that a row may become."""

    @staticmethod
    def reads(policy: Policy) -> bool:
        c = policy.model.config
        return (
            policy.dtype == torch.float32
            and c.model_type == "glm4_moe"
            and c.first_k_dense_replace >= c.num_hidden_layers
            and c.hidden_act == "silu"
            and not (c.attention_bias or c.use_qk_norm)
            and c.rope_parameters["partial_rotary_factor"] == 1
            and c.rope_parameters["rope_type"] == "default"
            and all(type(module) is nn.Linear for name, module in policy.named_modules() if name.endswith("_proj"))
        )

    def __init__(self, policy: Policy):
        self.policy, self.model = policy, policy.model.model
        self.config = policy.model.config
        self.heads, self.kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        self.layers = [self._fused(layer) for layer in self.model.layers[: self.config.num_hidden_layers]]
        self.head_DV = policy.model.get_output_embeddings().weight.t()[:, : policy.vocabulary]

    def read(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> Tensor:
        p, t = prompts_PT.shape
        position_PT = position(seen_PT)
        cos_1ND, sin_1ND = self.model.rotary_emb(self.head_DV, torch.arange(t + limit, device=seen_PT.device)[None])
        sign_D = torch.ones_like(sin_1ND[0, 0])
        sign_D[: len(sign_D) // 2] = -1
        self.cos_ND, self.sin_ND = cos_1ND[0], sin_1ND[0] * sign_D
        causal_TT = torch.ones(t, t, dtype=torch.bool, device=seen_PT.device).tril()
        itself_TT = torch.eye(t, dtype=torch.bool, device=seen_PT.device)  # pad, too, must look at something
        mask_P1TT = (causal_TT & seen_PT[:, None, None, :].bool()) | itself_TT

        self.buffers = list[tuple[Tensor, Tensor]]()
        x_PTE = self.model.embed_tokens(prompts_PT)
        for weights in self.layers:
            q_PTHD, k_PTKD, v_PTKD = self._qkv(weights, x_PTE, position_PT)
            self.buffers.append((self._buffer(k_PTKD, group, limit), self._buffer(v_PTKD, group, limit)))
            x_PTE = self._after(weights, x_PTE, self._attend(q_PTHD, k_PTKD, v_PTKD, mask_P1TT))
        logits_PV = self._logits(x_PTE[:, -1])

        self.used = t  # columns that are written
        self.position_B = seen_PT.sum(-1).repeat_interleave(group, 0)
        hidden_PT = torch.zeros(p, t, device=seen_PT.device).masked_fill(seen_PT == 0, -torch.inf)
        self.mask_BN = F.pad(hidden_PT.repeat_interleave(group, 0), (0, limit)) if bool((seen_PT == 0).any()) else None
        return logits_PV.repeat_interleave(group, 0)

    def append(self, token_B: Tensor) -> Tensor:
        n = self.used
        self.used += 1
        mask_B11N = None if self.mask_BN is None else self.mask_BN[:, None, None, : self.used]
        x_B1E = self.model.embed_tokens(token_B[:, None])
        for weights, (keys_BNKD, values_BNKD) in zip(self.layers, self.buffers, strict=True):
            q_B1HD, k_B1KD, v_B1KD = self._qkv(weights, x_B1E, self.position_B[:, None])
            keys_BNKD[:, n], values_BNKD[:, n] = k_B1KD[:, 0], v_B1KD[:, 0]
            found_B1E = self._attend(q_B1HD, keys_BNKD[:, : self.used], values_BNKD[:, : self.used], mask_B11N)
            x_B1E = self._after(weights, x_B1E, found_B1E)
        self.position_B = self.position_B + 1
        return self._logits(x_B1E[:, 0])

    def keep(self, rows: Tensor) -> None:
        self.position_B = self.position_B[rows]
        self.mask_BN = None if self.mask_BN is None else self.mask_BN[rows]
        for i, buffers in enumerate(self.buffers):
            for buffer in buffers:
                buffer[: len(rows), : self.used] = buffer[rows, : self.used]
            self.buffers[i] = buffers[0][: len(rows)], buffers[1][: len(rows)]

    @staticmethod
    def _fused(layer: Any) -> dict[str, Tensor]:
        attention, mlp = layer.self_attn, layer.mlp
        return {
            "norm": layer.input_layernorm.weight,
            "qkv": torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).t(),
            "out": attention.o_proj.weight.t(),
            "mlp_norm": layer.post_attention_layernorm.weight,
            "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).t(),
            "down": mlp.down_proj.weight.t(),
        }

    def _norm(self, x_NE: Tensor, weight_E: Tensor) -> Tensor:
        return F.rms_norm(x_NE, weight_E.shape, weight_E, self.config.rms_norm_eps)

    def _qkv(self, weights: dict[str, Tensor], x_BTE: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D], keys and values [B, T, K, D]; queries and keys are turned by their position."""
        b, t, _ = x_BTE.shape
        qkv = (self._norm(x_BTE, weights["norm"]).flatten(0, 1) @ weights["qkv"]).view(b, t, self.heads + 2 * self.kv_heads, -1)
        turned, v_BTKD = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
        cos, sin = self.cos_ND[position_BT][:, :, None], self.sin_ND[position_BT][:, :, None]
        turned = torch.addcmul(turned * cos, turned.roll(turned.shape[-1] // 2, -1), sin)
        q_BTHD, k_BTKD = turned.split([self.heads, self.kv_heads], 2)
        return q_BTHD, k_BTKD, v_BTKD

    def _attend(self, q_BTHD: Tensor, k_BNKD: Tensor, v_BNKD: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, H·D]"""
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BNKD, v_BNKD))
        found_BHTD = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.heads != self.kv_heads)
        return found_BHTD.transpose(1, 2).flatten(2)

    def _after(self, weights: dict[str, Tensor], x_BTE: Tensor, found_BTE: Tensor) -> Tensor:
        """The rest of a layer: the output projection and the MLP, each added to what came in."""
        x_NE = torch.addmm(x_BTE.flatten(0, 1), found_BTE.flatten(0, 1), weights["out"])
        gate_NF, up_NF = (self._norm(x_NE, weights["mlp_norm"]) @ weights["gate_up"]).chunk(2, -1)
        return torch.addmm(x_NE, F.silu(gate_NF).mul_(up_NF), weights["down"]).view(x_BTE.shape)

    def _logits(self, x_BE: Tensor) -> Tensor:
        return self._norm(x_BE, self.model.norm.weight) @ self.head_DV

    @staticmethod
    def _buffer(x_PTKD: Tensor, group: int, limit: int) -> Tensor:
        """[P·group, T + limit, K, D] with the prompts in it."""
        p, t, k, d = x_PTKD.shape
        buffer = x_PTKD.new_empty(p * group, t + limit, k, d)
        buffer[:, :t].view(p, group, t, k, d).copy_(x_PTKD[:, None])
        return buffer


def position(seen_PT: Tensor) -> Tensor:
    """[P, T] of each token among those that are seen."""
    return (seen_PT.cumsum(-1) - 1).clamp(min=0)
