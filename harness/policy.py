"""A causal language model, seen by a method."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import models, moe
from harness.mtp import Weights

if TYPE_CHECKING:
    from harness.method import Batch

Seen = tuple[Tensor, Tensor | None, list[moe.Routing]]  # tokens_BT, the last hidden state of all but the last, and the routers


class Policy(nn.Module):
    """A language model, whatever its architecture.

    Every per-token tensor is aligned with `tokens_BT`: position t holds the quantity of token t given the tokens
    before it, so nothing outside this class ever shifts by one. Position 0 has nothing before it and holds 0.
    Rows are padded on the right, where a causal model cannot see them. V is the size of the tokenizer's vocabulary: columns
    that some models have beyond it, for the sake of a round number, belong to no token.
    """

    lately_RE: Tensor  # how often each expert of each router was asked lately; part of a checkpoint, not of the model

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32, vocabulary: int | None = None):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.vocabulary = vocabulary  # V, where the model's columns may be more
        config = getattr(model, "config", None)
        self.balancing = moe.Balancing(**getattr(config, "balancing", {}))
        self.mtp_weights = Weights(**getattr(config, "mtp", {}))
        self.asked = dict[nn.Module, Tensor]()  # by router, [E] how often each expert was asked since the last step
        self._entropies = list[Tensor]()  # of routers, [M] each, since the last step
        self._seen = list[Seen]()  # forward passes that carry gradient, since the last `aux_loss`
        self.routers = moe.routers(model)
        if self.routers:
            experts = len(cast(Tensor, self.routers[0].weight))
            self.register_buffer("lately_RE", torch.zeros(len(self.routers), experts))

    @classmethod
    def load(cls, folder: Path, dtype: str) -> tuple[Self, Any]:
        """That of a model folder, its forward passes in `float32` or `bfloat16`, and its tokenizer."""
        model, tokenizer = models.load(folder)
        vocabulary = 1 + max(tokenizer.get_vocab().values())
        return cls(model, torch.bfloat16 if dtype == "bfloat16" else torch.float32, vocabulary), tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @property
    def routed(self) -> bool:
        """Whether tokens are handed to experts."""
        return len(self.routers) > 0

    @contextmanager
    def sampling(self) -> Generator[None]:
        """Without dropout, for as long as the block lasts."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def predictions(self, tokens_BT: Tensor, first: int = 1) -> Tensor:
        """[B, T - first, V] what π(·|token_<t) is the softmax of, for the tokens from position `first` on."""
        remember = torch.is_grad_enabled() and (self.routed or self.drafts > 0)
        with self.autocast(), moe.watched(self.model) if remember else nullcontext([]) as routing:
            out = self.model(
                input_ids=tokens_BT[:, :-1],
                use_cache=False,
                output_hidden_states=remember and self.drafts > 0,
                logits_to_keep=tokens_BT.shape[1] - first,
            )
            logits = cast(Tensor, out.logits)
        if remember:
            self._seen.append((tokens_BT, out.hidden_states[-1] if self.drafts else None, routing))
        return logits[..., : self.vocabulary].float()

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """[B, T, V] `predictions` of all tokens."""
        return F.pad(self.predictions(tokens_BT), (0, 0, 1, 0))

    @contextmanager
    def reading(self) -> Generator[list[tuple[Tensor, Tensor]]]:
        """The tokens and predictions of every forward pass for as long as the block lasts, which no `aux_loss` will know of."""
        read, predictions = list[tuple[Tensor, Tensor]](), self.predictions

        def remembered(tokens_BT: Tensor, first: int = 1) -> Tensor:
            read.append((tokens_BT, predictions(tokens_BT, first)))
            return read[-1][1]

        self.__dict__["predictions"] = remembered
        try:
            yield read
        finally:
            del self.__dict__["predictions"]
            self._seen.clear()

    def logp(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """[B, T] log π(token_t | token_<t).

        mask_BT   1 at the tokens that are asked for; the others have 0. A wide vocabulary has no logits made before the first
                  column in which one is asked for
        """
        first = 1 if mask_BT is None or not self.wide else max(1, int(mask_BT.any(0).int().argmax()))
        logp_BT = F.pad(chosen(self.predictions(tokens_BT, first), tokens_BT[:, first:]), (first, 0))
        return logp_BT if mask_BT is None else logp_BT * mask_BT

    @property
    def wide(self) -> bool:
        """Whether logits are more numbers than the states that they are made of: then it pays to make few."""
        columns, width = self.model.get_output_embeddings().weight.shape
        return columns > width

    @property
    def drafts(self) -> int:
        """D, of multi-token prediction."""
        return len(self.model.mtp.layers) if hasattr(self.model, "mtp") else 0

    def aux_loss(self, batch: Batch, pretraining: bool = False) -> Tensor:
        """What the architecture adds to any loss, for the forward passes of it that carry gradient: nothing for a dense model.

        It is over the tokens in the batch's masks, so a loss reads the token fields of its batch as they are.
        """
        total = torch.zeros((), device=self.device)
        weight = self.mtp_weights.weight if pretraining else self.mtp_weights.post_weight
        for tokens_BT, hidden_BTD, routing in self._seen:
            mask_BT = batch.mask_of(tokens_BT)
            total = total + self._balance(routing, mask_BT[:, 1:])  # it saw token t-1 when it helped to predict token t
            if weight and hidden_BTD is not None:
                with self.autocast(), moe.watched(self.model.mtp) as further:
                    loss = self.model.mtp.loss(self.model, tokens_BT, hidden_BTD, mask_BT, detached=not pretraining)
                total = total + weight * loss
                for k, layer in enumerate(further):
                    total = total + self._balance([layer], mask_BT[:, k + 2 :])
        self._seen.clear()
        return total

    def _balance(self, routing: list[moe.Routing], mask_BT: Tensor) -> Tensor:
        """[] what balancing adds to the loss; and count who was asked."""
        for layer in routing:
            counts_E = layer.counts(mask_BT.flatten())
            self.asked[layer.router] = counts_E + self.asked.get(layer.router, 0)
            self._entropies.append(layer.entropies(mask_BT.flatten()))
        if self.balancing.kind in ("sequence", "batch"):
            return moe.balance_loss(routing, mask_BT, self.balancing)
        return torch.zeros((), device=self.device)

    def after_step(self) -> dict[str, float]:
        """Whenever the weights have moved: adjust what balances the experts by other means than a loss; what to plot of it."""
        if not self.asked:
            return {}
        for i, router in enumerate(self.routers):
            if router in self.asked:
                self.lately_RE[i] = moe.KEPT * self.lately_RE[i] + self.asked[router]
                if self.balancing.kind == "bias":
                    moe.adjust(router, self.lately_RE[i], self.balancing.rate)
        plotted = moe.columns(torch.stack(list(self.asked.values())))
        plotted["moe/router_entropy"] = float(torch.cat(self._entropies).mean())
        self.asked.clear()
        self._entropies.clear()
        return plotted

    def flops_per_token(self) -> int:
        """2N: a multiplication and an addition for every weight a token meets, embedding look-ups and drafts apart."""
        tied = self.model.get_input_embeddings().weight is self.model.get_output_embeddings().weight
        look_up = 0 if tied else self.model.get_input_embeddings().weight.numel()
        drafts = active(self.model.mtp, self.model.config) if self.drafts else 0
        return 2 * (active(self.model, self.model.config) - look_up - drafts)

    def aux_flops_per_token(self, pretraining: bool = False) -> int:
        """2N of the drafts, and of the head once for each, where they are trained."""
        if not self.drafts or not (self.mtp_weights.weight if pretraining else self.mtp_weights.post_weight):
            return 0
        head = self.model.get_output_embeddings().weight.numel()
        return 2 * (active(self.model.mtp, self.model.config) + self.drafts * head)

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
        return 2 * (active(self, self.backbone.config) - self.backbone.get_input_embeddings().weight.numel())


def active(module: nn.Module, config: Any) -> int:
    """Weights that a token meets: of a layer's E experts, K."""
    return sum(
        p.numel() * config.num_experts_per_tok // p.shape[0] if ".experts." in name and p.ndim == 3 else p.numel()
        for name, p in module.named_parameters()
    )


def checksum(module: nn.Module) -> str:
    """The hash of every weight."""
    digest = hashlib.sha256()
    for name, p in sorted(module.state_dict().items()):
        digest.update(name.encode() + p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def chosen(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """[B, T] the log-probability of these tokens."""
    return logits_BTV.gather(-1, tokens_BT[..., None]).squeeze(-1) - logits_BTV.logsumexp(-1)


def taken(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """[B, T] the log-probability of the tokens that were taken; 0 at position 0."""
    return chosen(logits_BTV, tokens_BT) * (torch.arange(tokens_BT.shape[1], device=tokens_BT.device) > 0)
