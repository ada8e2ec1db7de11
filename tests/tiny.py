"""The presets' architectures at a width of 32, with random weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from harness import models
from harness.method import Batch, padded
from harness.policy import Policy

DEEP = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
EXPERTS = {"first_k_dense_replace": 0, "moe_intermediate_size": 16, "n_routed_experts": 7, "num_experts_per_tok": 2}
LATENT = {"head_dim": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
KINDS = ("moe", "mtp", "deepseek", "moe-coarse")
TOKENS = range(4, 11)  # that random sequences are of


@lru_cache
def tokenizer() -> Any:
    from harness.pretrain import character_tokenizer

    return character_tokenizer()


def architecture(name: str, **changes: Any) -> dict[str, Any]:
    of_preset = dict(models.presets()[name].architecture)
    sizes = DEEP | {"head_dim": 8, "first_k_dense_replace": 2}
    if of_preset["first_k_dense_replace"] == 0:
        sizes |= EXPERTS
    if "kv_lora_rank" in of_preset:
        sizes |= LATENT
    return of_preset | sizes | changes


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Biases of routers are not 0, as after pretraining."""
    from harness import moe

    torch.manual_seed(seed)
    made = models.new(architecture(name, **changes), tokenizer())
    for router in moe.routers(made):
        router.e_score_correction_bias.normal_(std=0.1)
    return made


def router(seed: int = 0, **changes: Any) -> Any:
    """The first of a mixture's."""
    from harness import moe

    return moe.routers(model("moe", seed, **changes))[0]


def policy(name: str, seed: int = 0, **changes: Any) -> Policy:
    return Policy(model(name, seed, **changes))


def batch(rows: int = 4, seed: int = 0, longest: int = 9) -> Batch:
    """Prompts and completions of different lengths, padded."""
    generator = torch.Generator().manual_seed(seed)

    def some(fewest: int) -> list[int]:
        n = int(torch.randint(fewest, longest, (1,), generator=generator))
        return torch.randint(TOKENS.start, TOKENS.stop, (n,), generator=generator).tolist()

    return padded([some(1) for _ in range(rows)], [some(3) for _ in range(rows)], pad=0)


def step(policy: Policy, batch: Batch, pretraining: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and gradient of all weights that have one."""
    policy.zero_grad()
    loss = (-policy.logp(batch.tokens_BT) * batch.mask_BT).sum(-1).mean() + policy.aux_loss(batch, pretraining)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
