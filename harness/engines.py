"""Reading a policy token by token: the logits of the next token of many rows at once.

`HF` reads any causal language model of transformers, through the cache that comes with it. `Native` reads the project's own
bases in float32 with the same arithmetic in a third of the operations: projections that share their input are one
multiplication, and what attention keeps of a token is written into one buffer instead of growing a cache. Of latent attention
that is the latent itself, which keys and values are never made of. Both take the weights from where the policy holds them,
anew for every batch of prompts, so there is nothing to keep in step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
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


Turns = tuple[Tensor, Tensor]  # [B, T, 1, D] cosine and sine of the angles of every position; of the first half, minus the sine


@dataclass
class Place:
    """Where the T columns of a pass are, of the N that a row may fill."""

    at: tuple[Any, Any]  # row and column of each, as the index of a buffer
    used: int  # columns that are written, with these
    turns: Turns
    mask: Tensor | None  # [B, 1, T, used] 0 where a column looks, -∞ where it does not


class Attention(ABC):
    """H heads, and what they keep of each token: buffers [B, N, …]."""

    out: Tensor  # [·, E]

    def read(self, x_PTE: Tensor, turns: Turns, mask: Tensor, group: int, limit: int) -> Tensor:
        """[P, T, ·] what is found in the prompts; each becomes `group` rows with room for `limit` more tokens."""
        query, kept = self.projected(x_PTE, turns)
        self.buffers = [roomy(x, group, limit) for x in kept]
        return self.found(query, kept, mask)

    def append(self, x_BTE: Tensor, place: Place) -> Tensor:
        """[B, T, ·] what is found in all that was read and these columns."""
        query, kept = self.projected(x_BTE, place.turns)
        for buffer, x in zip(self.buffers, kept, strict=True):
            buffer[place.at] = x
        return self.found(query, [buffer[:, : place.used] for buffer in self.buffers], place.mask)

    def keep(self, rows: Tensor, used: int) -> None:
        self.buffers = [front(buffer, rows, used) for buffer in self.buffers]

    @abstractmethod
    def projected(self, x_BTE: Tensor, turns: Turns) -> tuple[Tensor, list[Tensor]]:
        """Queries [B, T, H, ·], and what is kept of each token."""

    @abstractmethod
    def found(self, query: Tensor, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        """[B, T, ·]"""


class Heads(Attention):
    """Of size D; K of them have keys and values of their own."""

    def __init__(self, attention: Any):
        self.heads, self.kv_heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
        self.qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).t()
        self.out = attention.o_proj.weight.t()

    def projected(self, x_BTE: Tensor, turns: Turns) -> tuple[Tensor, list[Tensor]]:
        b, t, _ = x_BTE.shape
        qkv = (x_BTE.flatten(0, 1) @ self.qkv).view(b, t, self.heads + 2 * self.kv_heads, -1)
        qk, v_BTKD = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
        q_BTHD, k_BTKD = turned(qk, turns).split([self.heads, self.kv_heads], 2)
        return q_BTHD, [k_BTKD, v_BTKD]

    def found(self, query: Tensor, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, *kept))
        found_BHTD = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.heads != self.kv_heads)
        return found_BHTD.transpose(1, 2).flatten(2)


class Latent(Attention):
    """Keys and values of all heads from one latent c of rank R, which is kept with the rotated key that they share.

    They are never made: each head's queries and what it finds go through its matrices instead, which makes it multi-query
    attention of width R + D.

        q · W_K c = W_Kᵀq · c,    Σ_n p_n W_V c_n = W_V Σ_n p_n c_n
    """

    def __init__(self, attention: Any):
        c = attention.config
        self.heads, self.rank, self.rotary = c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim
        self.scale = attention.scaling
        nope = c.qk_nope_head_dim
        keys_HDR, values_HDR = attention.kv_b_proj.weight.view(self.heads, -1, self.rank).split([nope, c.v_head_dim], 1)
        self.keys_HDR, self.values_HRD = keys_HDR, values_HDR.transpose(1, 2)
        self.latent_norm, self.query_norm = attention.kv_a_layernorm, attention.q_a_layernorm
        self.out = attention.o_proj.weight.t()

        order_D = torch.arange(self.rotary, device=self.out.device)
        if c.rope_interleave:  # pairs that turn together stand side by side: bring the first of each to the front
            order_D = order_D.view(-1, 2).t().flatten()
        straight = attention.q_proj or attention.q_b_proj
        plain_HDE, rotary_HDE = straight.weight.view(self.heads, nope + self.rotary, -1).split([nope, self.rotary], 1)
        query = torch.cat([plain_HDE.flatten(0, 1), rotary_HDE[:, order_D].flatten(0, 1)])
        latent_RE, key_DE = attention.kv_a_proj_with_mqa.weight.split([self.rank, self.rotary])
        first = query if self.query_norm is None else attention.q_a_proj.weight
        self.inwards = torch.cat([first, key_DE[order_D], latent_RE]).t()
        self.query = query.t()

    def projected(self, x_BTE: Tensor, turns: Turns) -> tuple[Tensor, list[Tensor]]:
        b, t, _ = x_BTE.shape
        h, d = self.heads, self.rotary
        q_NQ, key_ND, latent_NR = (x_BTE.flatten(0, 1) @ self.inwards).tensor_split([-self.rank - d, -self.rank], -1)
        if self.query_norm is not None:
            q_NQ = normed(q_NQ, self.query_norm) @ self.query
        plain_NQ, rotary_NQ = q_NQ.tensor_split([-h * d], -1)
        rotary_BTHD, key_BT1D = turned(torch.cat([rotary_NQ, key_ND], -1).view(b, t, h + 1, d), turns).split([h, 1], 2)
        plain_HNR = plain_NQ.unflatten(-1, (h, -1)).transpose(0, 1) @ self.keys_HDR
        query = torch.cat([plain_HNR.transpose(0, 1).view(b, t, h, -1), rotary_BTHD], -1)
        return query, [torch.cat([normed(latent_NR, self.latent_norm).view(b, t, -1), key_BT1D[:, :, 0]], -1)]

    def found(self, query: Tensor, kept: list[Tensor], mask: Tensor | None) -> Tensor:
        b, t, h, _ = query.shape
        q, k = query.flatten(1, 2)[:, None], kept[0][:, None]  # every head a row, so that what is kept is gone through once
        if mask is not None and t > 1:
            mask = mask.repeat_interleave(h, 2)
        found = F.scaled_dot_product_attention(q, k, k, mask, scale=self.scale)[:, 0, :, : self.rank]
        found_HND = found.unflatten(1, (t, h)).flatten(0, 1).transpose(0, 1) @ self.values_HRD
        return found_HND.transpose(0, 1).reshape(b, t, -1)


class Dense:
    def __init__(self, mlp: Any):
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).t()
        self.down = mlp.down_proj.weight.t()

    def added(self, x_NE: Tensor, y_NE: Tensor) -> Tensor:
        """x + MLP(y)"""
        gate_NF, up_NF = (y_NE @ self.gate_up).chunk(2, -1)
        return torch.addmm(x_NE, F.silu(gate_NF).mul_(up_NF), self.down)


class Experts:
    """K of them for each token, chosen and weighed by the router, and those that are shared."""

    def __init__(self, mlp: Any):
        self.router, self.shared = mlp.gate, Dense(mlp.shared_experts)
        self.gate_up = mlp.experts.gate_up_proj.transpose(1, 2).contiguous()
        self.down = mlp.experts.down_proj.transpose(1, 2).contiguous()

    def added(self, x_NE: Tensor, y_NE: Tensor) -> Tensor:
        """x + shared(y) + Σ_k w_k expert_k(y); tokens are sorted by their experts and put back."""
        _, weights_NK, asked_NK = self.router(y_NE)
        n, k = asked_NK.shape
        asked = asked_NK.flatten()
        order = asked.argsort()
        ends = torch.bincount(asked, minlength=len(self.down)).cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(y_NE[order // k], self.gate_up, offs=ends).chunk(2, -1)
        sorted_ = F.grouped_mm(F.silu(gate).mul_(up), self.down, offs=ends)
        found_NKE = torch.empty_like(sorted_).index_copy_(0, order, sorted_).view(n, k, -1)
        return self.shared.added(x_NE, y_NE).add_((weights_NK[:, None] @ found_NKE)[:, 0])


class Layer:
    def __init__(self, layer: Any):
        self.attention = Latent(layer.self_attn) if hasattr(layer.self_attn, "kv_b_proj") else Heads(layer.self_attn)
        self.mlp = Experts(layer.mlp) if hasattr(layer.mlp, "experts") else Dense(layer.mlp)
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm

    def read(self, x_PTE: Tensor, turns: Turns, mask: Tensor, group: int, limit: int) -> Tensor:
        return self._after(x_PTE, self.attention.read(normed(x_PTE, self.norm), turns, mask, group, limit))

    def append(self, x_BTE: Tensor, place: Place) -> Tensor:
        return self._after(x_BTE, self.attention.append(normed(x_BTE, self.norm), place))

    def _after(self, x_BTE: Tensor, found: Tensor) -> Tensor:
        """The output projection and the MLP, each added to what came in."""
        x_NE = torch.addmm(x_BTE.flatten(0, 1), found.flatten(0, 1), self.attention.out)
        return self.mlp.added(x_NE, normed(x_NE, self.mlp_norm)).view(x_BTE.shape)


class Native:
    """glm4_moe and deepseek_v3: attention with heads or a latent, MLPs dense or mixtures of experts."""

    @staticmethod
    def reads(policy: Policy) -> bool:
        c = policy.model.config
        if policy.dtype != torch.float32 or c.model_type not in ("glm4_moe", "deepseek_v3"):
            return False
        if c.model_type == "glm4_moe":
            known = not c.use_qk_norm and c.rope_parameters["partial_rotary_factor"] == 1
        else:
            known = c.head_dim == c.qk_rope_head_dim and c.num_key_value_heads == c.num_attention_heads
        sparse = c.first_k_dense_replace < c.num_hidden_layers
        return (
            known
            and c.hidden_act == "silu"
            and not c.attention_bias
            and c.rope_parameters["rope_type"] == "default"
            and not (sparse and (c.hidden_size % 4 or c.moe_intermediate_size % 4))  # of grouped_mm: 16 bytes
            and not (sparse and policy.device.type != "cpu")  # where grouped_mm may not take float32
            and all(map(plain, *zip(*policy.named_modules(), strict=True)))
        )

    def __init__(self, policy: Policy):
        self.policy, self.model = policy, policy.model.model
        self.layers = [Layer(layer) for layer in self.model.layers[: policy.model.config.num_hidden_layers]]
        self.head_EV = policy.model.get_output_embeddings().weight.t()[:, : policy.vocabulary]

    def read(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> Tensor:
        x_PTE, _, _ = self.through(prompts_PT, seen_PT, group, limit)
        logits_PV = self.logits(normed(x_PTE[:, -1], self.model.norm))
        self.used = seen_PT.shape[1]
        self.position_B = seen_PT.sum(-1).repeat_interleave(group, 0)
        hidden_PT = torch.zeros(seen_PT.shape, device=seen_PT.device).masked_fill(seen_PT == 0, -torch.inf)
        self.mask_BN = F.pad(hidden_PT.repeat_interleave(group, 0), (0, limit)) if bool((seen_PT == 0).any()) else None
        return logits_PV.repeat_interleave(group, 0)

    def append(self, token_B: Tensor) -> Tensor:
        n, self.used = self.used, self.used + 1
        mask = None if self.mask_BN is None else self.mask_BN[:, None, None, : self.used]
        place = Place((slice(None), slice(n, self.used)), self.used, self.turns(self.position_B[:, None]), mask)
        x_B1E = self.model.embed_tokens(token_B[:, None])
        for layer in self.layers:
            x_B1E = layer.append(x_B1E, place)
        self.position_B = self.position_B + 1
        return self.logits(normed(x_B1E[:, 0], self.model.norm))

    def keep(self, rows: Tensor) -> None:
        self.position_B = self.position_B[rows]
        self.mask_BN = None if self.mask_BN is None else self.mask_BN[rows]
        for layer in self.layers:
            layer.attention.keep(rows, self.used)

    def through(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> tuple[Tensor, Turns, Tensor]:
        """[P, T, E] what comes out of the last layer, and with what angles and mask: buffers have the prompts in them."""
        t = prompts_PT.shape[1]
        cos_1ND, sin_1ND = self.model.rotary_emb(self.head_EV, torch.arange(t + limit, device=seen_PT.device)[None])
        sign_D = torch.ones_like(sin_1ND[0, 0])
        sign_D[: len(sign_D) // 2] = -1
        self.cos_ND, self.sin_ND = cos_1ND[0], sin_1ND[0] * sign_D
        causal_TT = torch.ones(t, t, dtype=torch.bool, device=seen_PT.device).tril()
        itself_TT = torch.eye(t, dtype=torch.bool, device=seen_PT.device)  # pad, too, must look at something
        looks_P1TT = (causal_TT & seen_PT[:, None, None, :].bool()) | itself_TT
        mask = torch.zeros(looks_P1TT.shape, device=seen_PT.device).masked_fill(~looks_P1TT, -torch.inf)
        turns = self.turns(position(seen_PT))
        x_PTE = self.model.embed_tokens(prompts_PT)
        for layer in self.layers:
            x_PTE = layer.read(x_PTE, turns, mask, group, limit)
        return x_PTE, turns, mask

    def turns(self, position_BT: Tensor) -> Turns:
        return self.cos_ND[position_BT][:, :, None], self.sin_ND[position_BT][:, :, None]

    def logits(self, x_NE: Tensor) -> Tensor:
        """[N, V] of normed x."""
        return x_NE @ self.head_EV


def plain(name: str, module: nn.Module) -> bool:
    """Not a projection, or experts, of another kind than these models have themselves."""
    last = name.rpartition(".")[2]
    if last == "experts":
        return type(module).__name__ in ("Glm4MoeExperts", "DeepseekV3Experts")
    return "_proj" not in last or type(module) is nn.Linear


def normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def turned(x_BTHD: Tensor, turns: Turns) -> Tensor:
    """Rotary embedding: halves [a, b] become [a cos - b sin, b cos + a sin]."""
    cos, sin = turns
    return torch.addcmul(x_BTHD * cos, x_BTHD.roll(x_BTHD.shape[-1] // 2, -1), sin)


def roomy(x_PT: Tensor, group: int, limit: int) -> Tensor:
    """[P·group, T + limit, …] with each prompt's [T, …] in `group` rows."""
    p, t, *rest = x_PT.shape
    buffer = x_PT.new_empty(p * group, t + limit, *rest)
    buffer[:, :t].view(p, group, t, *rest).copy_(x_PT[:, None])
    return buffer


def front(buffer: Tensor, rows: Tensor, used: int) -> Tensor:
    """These rows of a buffer, moved to its front."""
    buffer[: len(rows), :used] = buffer[rows, :used]
    return buffer[: len(rows)]


def position(seen_PT: Tensor) -> Tensor:
    """[P, T] of each token among those that are seen."""
    return (seen_PT.cumsum(-1) - 1).clamp(min=0)
