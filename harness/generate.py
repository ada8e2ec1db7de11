"""Sampling completions, so that a completion depends on the policy, its prompt and its own generator, and on nothing else.

Each completion has its own random numbers, keyed by a string; token t is the inverse of the cumulative distribution at
the t-th of them. So samples do not depend on the batch they were drawn in, on what was drawn before, or on the method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from harness.policy import Policy

ROWS = 512  # completions decoded at once


@dataclass
class Samples:
    """Completions of one batch of prompts, groups in a row: prompt 0's G completions first."""

    tokens: list[list[int]]  # EOS included where the completion ended
    logp: list[list[float]]  # of each token, under the policy that sampled it
    ended: list[bool]  # by EOS; otherwise cut off at the length limit

    def __getitem__(self, rows: Sequence[int]) -> Samples:
        return Samples([self.tokens[i] for i in rows], [self.logp[i] for i in rows], [self.ended[i] for i in rows])


def uniforms(key: str, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[n] numbers in [0, 1) that depend on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=seed)).random(n)


@torch.no_grad()
def generate(
    policy: Policy, prompts: Sequence[list[int]], group: int, keys: Sequence[str] | None, limit: int, eos: int, pad: int
) -> Samples:
    """`group` completions of each prompt, of at most `limit` tokens, at temperature 1 from the whole distribution.

    prompts   P lists of token ids, none of them empty
    keys      P·group strings, one a completion; None decodes greedily
    """
    out = Samples([], [], [])
    step = max(1, ROWS // group)
    for start in range(0, len(prompts), step):
        part = prompts[start : start + step]
        u_BN = None
        if keys is not None:
            rows = keys[start * group : (start + len(part)) * group]
            u_BN = torch.from_numpy(np.stack([uniforms(key, limit) for key in rows])).to(policy.device)
        tokens_BN, logp_BN = decode(policy, part, group, u_BN, limit, eos, pad)
        for row, logp in zip(tokens_BN.tolist(), logp_BN.tolist(), strict=True):
            ended = eos in row
            n = row.index(eos) + 1 if ended else limit
            out.tokens.append(row[:n])
            out.logp.append(logp[:n])
            out.ended.append(ended)
    return out


def decode(
    policy: Policy, prompts: Sequence[list[int]], group: int, u_BN: Tensor | None, limit: int, eos: int, pad: int
) -> tuple[Tensor, Tensor]:
    """[B, limit] tokens and their log-probabilities; what follows EOS is EOS, with log-probability 0.

    Prompts are read once a group, padded on the left; finished rows leave the batch when half of it has finished.
    """
    device, width = policy.device, max(map(len, prompts))
    rows_PT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    seen_PT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache(config=policy.model.config)
    training = policy.training
    policy.eval()
    with policy.autocast():
        logits_PV = policy.model(
            input_ids=rows_PT,
            attention_mask=seen_PT,
            position_ids=(seen_PT.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, : policy.vocabulary]
    cache.batch_repeat_interleave(group)
    logits_BV = logits_PV.repeat_interleave(group, 0)
    seen_BT = seen_PT.repeat_interleave(group, 0)
    position_B = seen_BT.sum(-1)

    tokens_BN = torch.full((len(seen_BT), limit), eos, device=device)
    logp_BN = torch.zeros(len(seen_BT), limit, device=device)
    alive_B = torch.arange(len(seen_BT), device=device)  # rows of the result that the batch still holds
    for n in range(limit):
        token_B, logp_B = pick(logits_BV.float(), None if u_BN is None else u_BN[alive_B, n])
        tokens_BN[alive_B, n], logp_BN[alive_B, n] = token_B, logp_B
        done_B = (tokens_BN[alive_B, : n + 1] == eos).any(-1)
        if n + 1 == limit or bool(done_B.all()):
            break
        if int(done_B.sum()) * 2 >= len(done_B):
            keep = torch.nonzero(~done_B).flatten()
            cache.batch_select_indices(keep)
            alive_B, seen_BT, position_B, token_B = alive_B[keep], seen_BT[keep], position_B[keep], token_B[keep]
        seen_BT = torch.cat([seen_BT, torch.ones_like(seen_BT[:, :1])], 1)
        with policy.autocast():
            logits_BV = policy.model(
                input_ids=token_B[:, None],
                attention_mask=seen_BT,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1, : policy.vocabulary]
        position_B = position_B + 1
    after_BN = (tokens_BN == eos).cumsum(-1) - (tokens_BN == eos).long() > 0
    policy.train(training)
    return tokens_BN.masked_fill(after_BN, eos), logp_BN.masked_fill(after_BN, 0.0)


def pick(logits_BV: Tensor, u_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B] a token each and its log-probability: the u-quantile of the distribution, or its mode."""
    logp_BV = logits_BV.log_softmax(-1)
    if u_B is None:
        token_B = logp_BV.argmax(-1)
    else:
        cdf_BV = logp_BV.double().exp().cumsum(-1)
        token_B = torch.searchsorted(cdf_BV, (u_B * cdf_BV[:, -1])[:, None], right=True).squeeze(-1)
        token_B = token_B.clamp(max=logp_BV.shape[-1] - 1)
    return token_B, logp_BV.gather(-1, token_B[:, None]).squeeze(-1)
