"""A causal language model, seen by a method."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Policy(nn.Module):
    """A language model, whatever its architecture.

    Every per-token tensor is aligned with `tokens_BT`: position t holds the quantity of token t given the tokens
    before it, so nothing outside this class ever shifts by one. Position 0 has nothing before it and holds 0.
    Rows are padded on the right, where a causal model cannot see them. V is the size of the tokenizer's vocabulary: columns
    that some models have beyond it, for the sake of a round number, belong to no token.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32, vocabulary: int | None = None):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.vocabulary = vocabulary  # V, where the model's columns may be more

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @contextmanager
    def sampling(self) -> Generator[None]:
        """Without dropout, for as long as the block lasts."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """[B, T, V] what π(·|token_<t) is the softmax of."""
        with self.autocast():
            logits = cast(Tensor, self.model(input_ids=tokens_BT[:, :-1], use_cache=False).logits)
        return F.pad(logits[..., : self.vocabulary].float(), (0, 0, 1, 0))

    def logp(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] log π(token_t | token_<t)."""
        return taken(self.logits(tokens_BT), tokens_BT)

    def aux_loss(self) -> Tensor:
        """What the architecture adds to any loss: nothing for a dense model."""
        return torch.zeros((), device=self.device)

    def flops_per_token(self) -> int:
        """2N: a multiplication and an addition for every weight a token meets, embedding look-ups apart."""
        tied = self.model.get_input_embeddings().weight is self.model.get_output_embeddings().weight
        n = sum(p.numel() for p in self.parameters()) - (0 if tied else self.model.get_input_embeddings().weight.numel())
        return 2 * n

    def frozen(self) -> Policy:
        """Itself, never to be trained again."""
        return self.eval().requires_grad_(False)


class Scalar(nn.Module):
    """A number at every token, read off a policy's backbone by a linear head that starts at 0: a reward model, a critic."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.backbone: Any = copy.deepcopy(policy.model.base_model).requires_grad_(True)
        self.head = nn.Linear(self.backbone.get_input_embeddings().embedding_dim, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.autocast = policy.autocast

    def after(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] the number at token t, with token t read: what a completion is worth that ends there."""
        with self.autocast():
            hidden_BTD = cast(Tensor, self.backbone(input_ids=tokens_BT, use_cache=False).last_hidden_state)
        return self.head(hidden_BTD.float()).squeeze(-1)

    def before(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] the number at token t, with the tokens before it read: the value of the state in which t is chosen."""
        return F.pad(self.after(tokens_BT[:, :-1]), (1, 0))

    def flops_per_token(self) -> int:
        """2N, embedding look-ups apart."""
        n = sum(p.numel() for p in self.parameters()) - self.backbone.get_input_embeddings().weight.numel()
        return 2 * n


def checksum(module: nn.Module) -> str:
    """The hash of every weight."""
    digest = hashlib.sha256()
    for name, p in sorted(module.state_dict().items()):
        digest.update(name.encode() + p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def taken(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """[B, T] the log-probability of the tokens that were taken; 0 at position 0."""
    logp_BT = logits_BTV.gather(-1, tokens_BT[..., None]).squeeze(-1) - logits_BTV.logsumexp(-1)
    return logp_BT * (torch.arange(tokens_BT.shape[1], device=tokens_BT.device) > 0)
