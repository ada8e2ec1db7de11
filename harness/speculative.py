"""Speculative decoding: the model's own modules of multi-token prediction (harness/mtp.py) draft what its trunk verifies.

A round, for a row whose last token y_t has been picked but not read, after h_<t:

    draft    x_k ~ q_k, k = 1 … D, from module k at position t-1, which sees h^{k-1} there and the token at t-1+k
    verify   the trunk reads y_t, x_1 … x_D at once; p_k is its distribution after x_<k
    accept   x_k with probability min(1, p_k(x_k) / q_k(x_k)), up to the first that is not
    then     one token more: from the normalised (p_k - q_k)⁺ where x_k was rejected, from p_{D+1} where none was

so that every token has the distribution p, whatever the modules draft (Leviathan et al. 2023, arXiv:2211.17192). Greedily p and
q are all on their modes. Rows go on by different numbers of tokens: each has a column of its own to write at, and what was
rejected is written over in the next round.

A completion has three random numbers for each of its tokens, keyed as in harness/generate.py: one to draft it, one to accept
the draft, one to pick it otherwise. A token that is drafted twice, because an earlier draft was rejected, is drafted with the
same number: the first draft was never judged. So a completion depends on nothing but policy, prompt and key here too; only the
last D tokens of one that is cut off depend on the limit, at which nothing is drafted. It is another than `generate` gives for
that key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engines import Layer, Native, Place, front, normed, roomy
from harness.generate import Completion, Samples, batches, cut, left_padded, quantile, samples
from harness.policy import Policy

DRAFT, ACCEPT, PICK = range(3)  # random numbers of a token


@dataclass
class Drafted:
    """Summed over completions, and without what came after the end of one."""

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    tokens: int = 0  # of all rounds; the first token of a completion comes out of its prompt


@torch.no_grad()
def speculate(
    policy: Policy, prompts: Sequence[list[int]], group: int, keys: Sequence[str] | None, limit: int, eos: int, pad: int
) -> tuple[Samples, Drafted]:
    """What `generate` gives: the same completions greedily, and from the same distribution otherwise.

    Raises ValueError for a policy that has no modules to draft with, or that the native engine does not read.
    """
    if not Drafting.reads(policy):
        raise ValueError("speculative decoding needs a model with modules of multi-token prediction, read natively")
    rows, counts = list[Completion](), Drafted()
    for part, u_BN in batches(policy, prompts, group, keys, 3 * limit):
        with policy.sampling():
            rows += cut(*decode(policy, part, group, u_BN, limit, eos, pad, counts), eos)
    return samples(rows), counts


def decode(
    policy: Policy,
    prompts: Sequence[list[int]],
    group: int,
    u_BN: Tensor | None,
    limit: int,
    eos: int,
    pad: int,
    counts: Drafted,
) -> tuple[Tensor, Tensor]:
    """[B, limit] tokens and their log-probabilities, whatever they are after EOS.

    Columns are those of prompt and completion, padded on the left; finished rows leave when a quarter has finished.
    """
    device, depth, greedy = policy.device, policy.drafts, u_BN is None
    rows_PT, seen_PT = left_padded(prompts, pad, device, least=2 * depth)
    b, start = len(prompts) * group, rows_PT.shape[1]  # of completions
    u_BN3 = torch.full((b, limit, 3), 0.5, device=device) if u_BN is None else u_BN.view(b, limit, 3)
    text_BN = F.pad(rows_PT.repeat_interleave(group, 0), (0, limit + depth + 1))
    logp_BN = torch.zeros(text_BN.shape, device=device)

    reader = Drafting(policy)
    logits_BV = reader.read(rows_PT, seen_PT, group, limit + depth + 1)
    text_BN[:, start] = quantile(distribution(logits_BV, greedy), u_BN3[:, 0, PICK])
    logp_BN[:, start] = of(logits_BV.log_softmax(-1), text_BN[:, start])
    alive_B = torch.arange(b, device=device)
    last_B = torch.full((b,), start, device=device)  # column of the last token
    while True:
        left_B = (start + limit - 1 - last_B) * (text_BN[alive_B, last_B] != eos)
        finished = int((left_B == 0).sum())
        if finished == len(left_B):
            break
        if finished * 4 >= len(left_B):
            rows = torch.nonzero(left_B).flatten()
            reader.keep(rows)
            alive_B, last_B, left_B = alive_B[rows], last_B[rows], left_B[rows]
        depth = min(depth, int(left_B.max()) - 1)
        rows_B1 = alive_B[:, None]
        ahead_BT = last_B[:, None] + torch.arange(1, depth + 2, device=device)  # of the drafts and one more
        u_BT3 = u_BN3[rows_B1, (ahead_BT - start).clamp(max=limit - 1)]

        reader.look_back(last_B)
        guesses = list[Tensor]()
        for k in range(1, depth + 1):
            guesses.append(distribution(reader.guess(k, text_BN[alive_B]), greedy))
            text_BN[alive_B, last_B + k] = quantile(guesses[-1], u_BT3[:, k - 1, DRAFT])
        draft_BD = text_BN[rows_B1, ahead_BT[:, :-1]]
        logits_BTV = reader.verify(text_BN[rows_B1, ahead_BT - 1], ahead_BT - 1)

        p_BTV = distribution(logits_BTV, greedy)
        q_BTV = torch.stack([*guesses, torch.zeros_like(p_BTV[:, 0])], 1)
        may_B = (left_B - 1).clamp(min=0, max=depth)  # drafts that the limit leaves room for
        accepted_B, token_B = judged(p_BTV, q_BTV, draft_BD, may_B, u_BT3)
        text_BN[alive_B, last_B + 1 + accepted_B] = token_B
        new_BT = text_BN[rows_B1, ahead_BT]
        logp_BN[rows_B1, ahead_BT] = of(logits_BTV.log_softmax(-1), new_BT)

        going_B = left_B > 0
        n_T = torch.arange(depth + 1, device=device)
        came_BT = going_B[:, None] & (n_T <= accepted_B[:, None])
        came_BT = came_BT & first_until(new_BT, eos)
        asked_BD = going_B[:, None] & (n_T[:-1] < may_B[:, None]) & first_until(draft_BD, eos)
        counts.drafted += int(asked_BD.sum())
        counts.accepted += int((came_BT & (n_T < accepted_B[:, None])).sum())
        counts.rounds += int(going_B.sum())
        counts.tokens += int(came_BT.sum())
        last_B = last_B + came_BT.sum(-1)
    return text_BN[:, start : start + limit], logp_BN[:, start : start + limit]


def judged(p_BTV: Tensor, q_BTV: Tensor, draft_BD: Tensor, may_B: Tensor, u_BT3: Tensor) -> tuple[Tensor, Tensor]:
    """[B] how many drafts are accepted, of the first `may`, and [B] the token after them; T is D + 1, q_T is 0."""
    d = draft_BD.shape[1]
    likely_BD, guessed_BD = of(p_BTV[:, :d], draft_BD), of(q_BTV[:, :d], draft_BD)
    good_BD = (u_BT3[:, :d, ACCEPT] * guessed_BD < likely_BD) & (torch.arange(d, device=may_B.device) < may_B[:, None])
    accepted_B = good_BD.long().cumprod(-1).sum(-1)
    rows_B = torch.arange(len(may_B), device=may_B.device)
    rejected_B = accepted_B < may_B
    rest_BV = p_BTV[rows_B, accepted_B] - q_BTV[rows_B, accepted_B] * rejected_B[:, None]
    return accepted_B, quantile(rest_BV.clamp(min=0), u_BT3[rows_B, accepted_B, PICK])


class Drafting(Native):
    """The trunk and the modules, with a cache each; column n of a row holds the same token in all of them.

    Module k must see true tokens where it saw drafts, and there are at most D + k - 1 such columns before what it drafts from:
    so all modules read the last 2D columns in every round.
    """

    @staticmethod
    def reads(policy: Policy) -> bool:
        first = getattr(policy.model.config, "mtp_hidden_states_first", False)
        return policy.drafts > 0 and not first and Native.reads(policy)

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self.modules = [Module(module) for module in policy.model.mtp.layers]

    def read(self, prompts_PT: Tensor, seen_PT: Tensor, group: int, limit: int) -> Tensor:
        x_PTE, turns, mask = self.through(prompts_PT, seen_PT, group, limit)
        hidden_PTE = normed(x_PTE, self.model.norm)
        logits_PV = self.logits(hidden_PTE[:, -1])
        self.hidden_BNE = roomy(hidden_PTE, group, limit)
        for k, module in enumerate(self.modules, start=1):  # columns whose tokens are not known yet are read again
            next_PTE = self.model.embed_tokens(F.pad(prompts_PT[:, k:], (0, k)))
            hidden_PTE = module.after(module.layer.read(module.before(next_PTE, hidden_PTE), turns, mask, group, limit))
        for layer in self._all():
            for buffer in layer.attention.buffers:
                buffer[:, prompts_PT.shape[1] :] = 0  # what has never been written must not be NaN, seen or not
        self.used = prompts_PT.shape[1]
        self.first_B = seen_PT.argmax(-1).repeat_interleave(group, 0)
        return logits_PV.repeat_interleave(group, 0)

    def look_back(self, last_B: Tensor) -> None:
        """Draft for rows of which the trunk has read all that is before column `last`."""
        self.columns_BW = last_B[:, None] + torch.arange(-2 * len(self.modules), 0, device=last_B.device)
        self.back = self._place(self.columns_BW)
        self.hidden_BWE = self.hidden_BNE[self.back.at]

    def guess(self, k: int, text_BN: Tensor) -> Tensor:
        """[B, V] of the token k columns after `last`; one k after the other."""
        module = self.modules[k - 1]
        next_BWE = self.model.embed_tokens(text_BN.gather(1, self.columns_BW + k))
        self.hidden_BWE = module.after(module.layer.append(module.before(next_BWE, self.hidden_BWE), self.back))
        return self.logits(self.hidden_BWE[:, -1])

    def verify(self, tokens_BT: Tensor, columns_BT: Tensor) -> Tensor:
        """[B, T, V] after each of the tokens, which are written at these columns."""
        place = self._place(columns_BT)
        self.used = place.used
        x_BTE = self.model.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTE = layer.append(x_BTE, place)
        hidden_BTE = normed(x_BTE, self.model.norm)
        self.hidden_BNE[place.at] = hidden_BTE
        return self.logits(hidden_BTE)

    def keep(self, rows: Tensor) -> None:
        for layer in self._all():
            layer.attention.keep(rows, self.used)
        self.hidden_BNE = front(self.hidden_BNE, rows, self.used)
        self.first_B = self.first_B[rows]

    def _all(self) -> list[Layer]:
        return [*self.layers, *(module.layer for module in self.modules)]

    def _place(self, columns_BT: Tensor) -> Place:
        """Each column looks at itself and at those before it, down to the first that holds a token."""
        used = int(columns_BT.max()) + 1
        n_N = torch.arange(used, device=columns_BT.device)
        own_BT1, first_B11 = columns_BT[..., None], self.first_B[:, None, None]
        looks_BTN = (n_N <= own_BT1) & ((n_N >= first_B11) | (n_N == own_BT1))
        mask = torch.zeros(looks_BTN.shape, device=columns_BT.device).masked_fill(~looks_BTN, -torch.inf)[:, None]
        rows_B1 = torch.arange(len(columns_BT), device=columns_BT.device)[:, None]
        position_BT = (columns_BT - self.first_B[:, None]).clamp(min=0)
        return Place((rows_B1, columns_BT), used, self.turns(position_BT), mask)


class Module:
    """One of multi-token prediction: what comes before its layer, and after."""

    def __init__(self, module: Any):
        self.layer = Layer(module.mtp_block)
        self.next_norm, self.hidden_norm, self.norm = module.enorm, module.hnorm, module.post_norm
        self.joined = module.eh_proj.weight.t()

    def before(self, next_BTE: Tensor, hidden_BTE: Tensor) -> Tensor:
        return torch.cat([normed(next_BTE, self.next_norm), normed(hidden_BTE, self.hidden_norm)], -1) @ self.joined

    def after(self, x_BTE: Tensor) -> Tensor:
        return normed(x_BTE, self.norm)


def distribution(logits: Tensor, greedy: bool) -> Tensor:
    """[…, V] the softmax; greedily, 1 at the mode."""
    if greedy:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return logits.double().softmax(-1)


def of(values: Tensor, tokens: Tensor) -> Tensor:
    """[…] the value of each token, of [..., V]."""
    return values.gather(-1, tokens[..., None]).squeeze(-1)


def first_until(tokens_BT: Tensor, eos: int) -> Tensor:
    """[B, T] whether no EOS came before."""
    is_end_BT = (tokens_BT == eos).long()
    return is_end_BT.cumsum(-1) == is_end_BT
