"""Sampling completions, so that a completion depends on the policy, its prompt and its own generator, and on nothing else.

Each completion has its own random numbers, keyed by a string; token t is the inverse of the cumulative distribution at
the t-th of them. So samples do not depend on the batch they were drawn in, on what was drawn before, or on the method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import devices
from harness.engines import engine
from harness.policy import Policy

ROWS = 512  # completions decoded at once

Completion = tuple[list[int], list[float], bool]  # tokens, their log-probabilities, ended?
Heard = Callable[[int, list[int], bool], None]  # index of a completion, its tokens, ended?


def decoded(tokenizer: Any, tokens: list[int], ended: bool) -> str:
    """A completion as the verifier sees it: special tokens other than the final EOS stay visible."""
    return tokenizer.decode(tokens[:-1] if ended else tokens, clean_up_tokenization_spaces=False)


@dataclass
class Samples:
    """Completions of one batch of prompts, groups in a row: prompt 0's G completions first."""

    tokens: list[list[int]]  # EOS included where the completion ended
    logp: list[list[float]]  # of each token, under the policy that sampled it
    ended: list[bool]  # by EOS; otherwise cut off at the length limit

    def __getitem__(self, rows: Sequence[int]) -> Samples:
        return Samples([self.tokens[i] for i in rows], [self.logp[i] for i in rows], [self.ended[i] for i in rows])

    def tell(self, heard: Heard) -> Samples:
        """Itself, once all of it has been heard."""
        for i, (tokens, ended) in enumerate(zip(self.tokens, self.ended, strict=True)):
            heard(i, tokens, ended)
        return self


def cut(tokens_BN: Tensor, logp_BN: Tensor, eos: int) -> Iterator[Completion]:
    """Rows that end with their first EOS, or with their last column."""
    for row, logp in zip(tokens_BN.tolist(), logp_BN.tolist(), strict=True):
        ended = eos in row
        n = row.index(eos) + 1 if ended else len(row)
        yield row[:n], logp[:n], ended


def seed(key: str) -> int:
    """Of 63 bits, that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def uniforms(key: str, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[n] numbers in [0, 1) that depend on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=seed)).random(n)


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[list[int]],
    group: int,
    keys: Sequence[str] | None,
    limit: int,
    eos: int,
    pad: int,
    heard: Heard | None = None,
) -> Samples:
    """`group` completions of each prompt, of at most `limit` tokens, at temperature 1 from the whole distribution.

    prompts   P lists of token ids, none of them empty
    keys      P·group strings, one a completion; None decodes greedily
    heard     told of every completion once, as they finish, while others are sampled

    Of several processes, each samples for its share of the prompts and hears of it, and all have all completions.
    """
    share = dict[int, Completion]()
    asked = devices.mine(range(len(prompts)))
    mine = [p * group + g for p in asked for g in range(group)]
    drawn = None if keys is None else [keys[i] for i in mine]
    for part, u_BN in batches(policy, [prompts[p] for p in asked], group, drawn, limit):
        here, mine = mine[: len(part) * group], mine[len(part) * group :]
        for rows_R, tokens_RN, logp_RN in decode(policy, part, group, u_BN, limit, eos, pad):
            for row, completion in zip(rows_R.tolist(), cut(tokens_RN, logp_RN, eos), strict=True):
                share[here[row]] = completion
                if heard:
                    heard(here[row], completion[0], completion[2])
    return samples(devices.joined(share))


def samples(completions: Iterable[Completion]) -> Samples:
    """Of completions in their order."""
    rows = list(completions)
    return Samples([tokens for tokens, _, _ in rows], [logp for _, logp, _ in rows], [ended for _, _, ended in rows])


def batches(
    policy: Policy, prompts: Sequence[list[int]], group: int, keys: Sequence[str] | None, n: int
) -> Iterator[tuple[Sequence[list[int]], Tensor | None]]:
    """Prompts whose completions are decoded at once, and [B, n] random numbers of these completions."""
    step = max(1, ROWS // group)
    for start in range(0, len(prompts), step):
        part = prompts[start : start + step]
        u_BN = None
        if keys is not None:
            rows = keys[start * group : (start + len(part)) * group]
            u_BN = torch.from_numpy(np.stack([uniforms(key, n) for key in rows])).to(policy.device)
        yield part, u_BN


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device, least: int = 0) -> tuple[Tensor, Tensor]:
    """[P, T] tokens, and 1 where they are seen; T is `least` or more."""
    width = max(least, *map(len, prompts))
    rows_PT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    seen_PT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return rows_PT, seen_PT


def decode(
    policy: Policy, prompts: Sequence[list[int]], group: int, u_BN: Tensor | None, limit: int, eos: int, pad: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """As rows finish: [R] their indices, [R, limit] tokens and log-probabilities; after EOS comes EOS, with log-probability 0.

    Prompts are read once a group, padded on the left; finished rows leave the batch when a quarter of it has finished.
    """
    device = policy.device
    rows_PT, seen_PT = left_padded(prompts, pad, device)
    tokens_BN = torch.full((len(prompts) * group, limit), eos, device=device)
    logp_BN = torch.zeros(tokens_BN.shape, device=device)
    alive_B = torch.arange(len(tokens_BN), device=device)  # rows of the result that the engine still holds
    done_B = torch.zeros(len(tokens_BN), dtype=torch.bool, device=device)
    with policy.sampling(), policy.autocast():
        reader = engine(policy)
        logits_BV = reader.read(rows_PT, seen_PT, group, limit)
        for n in range(limit):
            token_B, logp_B = pick(logits_BV.float(), None if u_BN is None else u_BN[alive_B, n])
            tokens_BN[alive_B, n] = token_B.masked_fill(done_B, eos)
            logp_BN[alive_B, n] = logp_B.masked_fill(done_B, 0.0)
            done_B = done_B | (token_B == eos)
            finished = int(done_B.sum())
            if n + 1 == limit or finished == len(done_B):
                yield alive_B, tokens_BN[alive_B], logp_BN[alive_B]
                return
            if finished * 4 >= len(done_B):
                left_R, rows = alive_B[done_B], torch.nonzero(~done_B).flatten()
                yield left_R, tokens_BN[left_R], logp_BN[left_R]
                reader.keep(rows)
                alive_B, token_B, done_B = alive_B[rows], token_B[rows], done_B[rows]
            logits_BV = reader.append(token_B)


def pick(logits_BV: Tensor, u_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B] a token each and its log-probability: the u-quantile of the distribution, or its mode."""
    logp_BV = logits_BV.log_softmax(-1)
    token_B = logp_BV.argmax(-1) if u_B is None else quantile(logp_BV.double().exp(), u_B)
    return token_B, logp_BV.gather(-1, token_B[:, None]).squeeze(-1)


def quantile(p_BV: Tensor, u_B: Tensor) -> Tensor:
    """[B] the u-quantile of each distribution, which need not add up to 1."""
    cdf_BV = p_BV.cumsum(-1)
    token_B = torch.searchsorted(cdf_BV, (u_B * cdf_BV[:, -1])[:, None], right=True).squeeze(-1)
    return token_B.clamp(max=p_BV.shape[-1] - 1)
