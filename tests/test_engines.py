"""The engines give the log-probabilities of the trainer, and each other's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness import generate as sampler
from harness.engines import HF, Engine, Native, engine
from harness.generate import generate
from harness.models import maybe_empty, new, presets, with_fast_experts
from harness.moe import routers, without_the_best
from harness.policy import Policy
from harness.pretrain import character_tokenizer

torch.set_num_threads(1)

TOKENIZER = character_tokenizer()
PAD, LIMIT, GROUP = TOKENIZER.pad_token_id, 16, 3
TEXTS = ["438+57=", "9*9=", "A:B+ B:A+?", "1", "0:5 1:8 2:11 4:17 7:26?"]
TIE = 1e-4  # of the two likeliest log-probabilities

EXPERTS = {"first_k_dense_replace": 1, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ONE_GROUP = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
LATENT = {
    "model_type": "deepseek_v3",
    "head_dim": 8,
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rms_norm_eps": 0.01,  # so large that it would show where a norm has another
}
SHAPES = {
    "smoke": {},
    "shared keys and values": {"num_key_value_heads": 2},
    "one head of keys and values": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "wide logits": {"vocab_size": 128},
    "experts": {**EXPERTS, **ONE_GROUP},
    "experts in groups": {**EXPERTS, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": False},
    "no shared experts": {**EXPERTS, **ONE_GROUP, "n_shared_experts": 0},
    "latent": LATENT,
    "latent, halves turn": {**LATENT, "rope_interleave": False},
    "latent, queries of low rank": {**LATENT, "q_lora_rank": 20},
    "latent and experts": {**LATENT, **EXPERTS, **ONE_GROUP, "first_k_dense_replace": 0, "n_shared_experts": 2},
}


def policy_of(dtype: torch.dtype = torch.float32, **changes) -> Policy:
    """Random weights, wide enough apart for the distributions to be far from uniform."""
    sizes = {"vocab_size": len(TOKENIZER), "tie_word_embeddings": True}
    architecture = {**presets()["smoke"].architecture, "initializer_range": 0.3, **sizes, **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(**architecture, pad_token_id=PAD, eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None)
    with maybe_empty():
        model = with_fast_experts(AutoModelForCausalLM.from_config(config))
    for router in routers(model):
        router.e_score_correction_bias.normal_(std=0.2)
    return Policy(model, dtype, len(TOKENIZER)).frozen()


@pytest.fixture(scope="module", params=SHAPES)
def policy(request) -> Policy:
    return policy_of(**SHAPES[request.param])


def left_padded(texts: list[str]) -> tuple[Tensor, Tensor]:
    rows = TOKENIZER(texts)["input_ids"]
    width = max(map(len, rows))
    tokens = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return tokens, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def told(reader: Engine, texts: list[str], tokens_BN: Tensor, leave: int) -> Tensor:
    """[B, N+1, V] log-probabilities after the prompts and after every token; every second row leaves at `leave`."""
    logits = [reader.read(*left_padded(texts), GROUP, tokens_BN.shape[1])]
    rows = torch.arange(len(tokens_BN))
    for n in range(tokens_BN.shape[1]):
        if n == leave:
            reader.keep(rows := rows[::2])
        logits.append(torch.zeros_like(logits[0]).index_copy(0, rows, reader.append(tokens_BN[rows, n])))
    return torch.stack(logits, 1).log_softmax(-1)


@pytest.mark.parametrize("texts", [TEXTS, ["1+1=", "2+2="]], ids=["of all lengths", "of one length"])
@torch.no_grad()
def test_native_and_hf_give_the_same_log_probabilities(policy, texts):
    assert Native.reads(policy)
    tokens_BN = torch.randint(3, len(TOKENIZER), (len(texts) * GROUP, LIMIT), generator=torch.Generator().manual_seed(1))
    native, hf = (told(kind(policy), texts, tokens_BN, leave=7) for kind in (Native, HF))
    assert native.shape == (len(tokens_BN), LIMIT + 1, len(TOKENIZER))
    assert float((native - hf).abs().max()) < 1e-4
    assert float(native.std()) > 0.5, "distributions so flat would agree by themselves"


@torch.no_grad()
def test_both_give_the_log_probabilities_of_the_trainer(policy):
    tokens_BN = torch.randint(3, len(TOKENIZER), (len(TEXTS) * GROUP, LIMIT), generator=torch.Generator().manual_seed(2))
    prompts = [prompt for prompt in TOKENIZER(TEXTS)["input_ids"] for _ in range(GROUP)]
    rows = [torch.tensor([prompt + tokens_N.tolist()]) for prompt, tokens_N in zip(prompts, tokens_BN, strict=True)]
    trained_BN = torch.stack([policy.logp(row)[0, -LIMIT:] for row in rows])
    for kind in (Native, HF):
        logp_BNV = told(kind(policy), TEXTS, tokens_BN, leave=LIMIT)
        sampled_BN = logp_BNV[:, :-1].gather(-1, tokens_BN[..., None]).squeeze(-1)
        assert float((sampled_BN - trained_BN).abs().max()) < 1e-4


def test_greedy_outputs_are_the_same_but_for_ties(policy, monkeypatch):
    prompts = TOKENIZER(TEXTS * 4)["input_ids"]
    outputs = {}
    for kind in (Native, HF):
        monkeypatch.setattr(sampler, "engine", kind)
        outputs[kind] = generate(policy, prompts, 1, None, LIMIT, TOKENIZER.eos_token_id, PAD)
    ties = 0
    for prompt, a, b in zip(prompts, outputs[Native].tokens, outputs[HF].tokens, strict=True):
        if a != b:
            first = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            best = policy.logits(torch.tensor([prompt + a[: first + 1]]))[0, -1].log_softmax(-1).topk(2).values
            assert best[0] - best[1] < TIE
            ties += 1
    assert ties <= 1


def test_what_native_does_not_know_is_read_by_hf():
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    others = [
        Policy(LlamaForCausalLM(LlamaConfig(**sizes))),
        policy_of(torch.bfloat16),
        policy_of(use_qk_norm=True),
        policy_of(attention_bias=True),
        policy_of(partial_rotary_factor=0.5),
        policy_of(**LATENT, attention_bias=True),
        policy_of(**LATENT, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        policy_of(**EXPERTS, hidden_act="gelu"),
        policy_of(**{**EXPERTS, "moe_intermediate_size": 18}),
    ]
    assert [type(engine(policy)) for policy in (policy_of(), *others)] == [Native, *[HF] * len(others)]


def test_hf_samples_from_a_model_that_native_does_not_know():
    policy = policy_of(use_qk_norm=True)
    assert not Native.reads(policy)
    prompts = TOKENIZER(TEXTS)["input_ids"]
    y = generate(policy, prompts, GROUP, [str(i) for i in range(len(TEXTS) * GROUP)], LIMIT, TOKENIZER.eos_token_id, PAD)
    for b, (tokens, logp) in enumerate(zip(y.tokens, y.logp, strict=True)):
        prompt = prompts[b // GROUP]
        with torch.no_grad():
            trained_T = policy.logp(torch.tensor([prompt + tokens]))[0, len(prompt) :]
        assert float((torch.tensor(logp) - trained_T).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", ["experts", "experts in groups"])
def test_native_asks_the_experts_that_the_router_chooses(shape):
    """Also when something else has changed its choice."""
    policy = policy_of(**SHAPES[shape])
    tokens_BN = torch.randint(3, len(TOKENIZER), (len(TEXTS) * GROUP, LIMIT), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = told(Native(policy), TEXTS, tokens_BN, leave=7)
        with without_the_best(policy.model, 1):
            native, hf = (told(kind(policy), TEXTS, tokens_BN, leave=7) for kind in (Native, HF))
    assert float((native - hf).abs().max()) < 1e-4
    assert float((native - before).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["dense", "gqa", "mqa", "moe", "moe-coarse", "moe-fine", "mla", "mtp", "deepseek"])
def test_native_reads_the_presets(name):
    assert Native.reads(Policy(new(presets()[name].architecture, TOKENIZER)))


@torch.no_grad()
def test_latent_attention_keeps_a_latent_and_a_key_for_each_token():
    policy = policy_of(**LATENT)
    reader = Native(policy)
    reader.read(*left_padded(TEXTS), GROUP, LIMIT)
    width = max(map(len, TEXTS)) + LIMIT
    shapes = [tuple(buffer.shape) for layer in reader.layers for buffer in layer.attention.buffers]
    assert shapes == [(len(TEXTS) * GROUP, width, LATENT["kv_lora_rank"] + LATENT["qk_rope_head_dim"])] * len(reader.layers)
