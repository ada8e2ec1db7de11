"""What an architecture costs: weights, FLOPs, and what its cache holds, counted from its modules."""

from functools import lru_cache

import pytest
import tiny
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from harness import models, moe
from harness.policy import Policy

pytestmark = pytest.mark.slow

BUILT = sorted(name for name, recipe in models.presets().items() if recipe.architecture)
VOCABULARY = 99
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@lru_cache
def preset(name):
    torch.manual_seed(0)
    return models.new(models.presets()[name].architecture, tiny.tokenizer())


def recount(model):
    """All weights, those that a token meets, and those of them that it is multiplied with: from the modules, one by one."""
    total = active = multiplied = 0
    config = model.config
    for name, m in model.named_modules():
        if name.startswith("mtp"):
            continue
        if isinstance(m, nn.Linear):
            n = m.in_features * m.out_features
            total, active, multiplied = total + n, active + n, multiplied + n
        elif type(m).__name__.endswith("Experts"):
            one = 3 * config.hidden_size * config.moe_intermediate_size  # gate, up and down
            total += config.n_routed_experts * one
            active += config.num_experts_per_tok * one
            multiplied += config.num_experts_per_tok * one
        elif type(m).__name__.endswith("TopkRouter"):
            n = config.n_routed_experts * config.hidden_size
            total, active, multiplied = total + n, active + n, multiplied + n
        elif type(m).__name__.endswith("RMSNorm"):
            total, active = total + len(m.weight), active + len(m.weight)
    return total, active, multiplied  # the head is a Linear and the embedding it is tied to is none: once


@pytest.mark.parametrize("name", BUILT)
def test_parameters_and_flops_are_those_of_the_modules(name):
    model = preset(name)
    total, active, multiplied = recount(model)
    facts = models.facts(model)
    assert (facts.parameters, facts.active, facts.flops_per_token) == (total, active, 2 * active)
    assert multiplied < active < 1.01 * multiplied  # norms
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.numel() == VOCABULARY * model.config.hidden_size


@pytest.mark.parametrize("name", ["dense", "mla", "moe", "deepseek", "gqa", "mtp"])
def test_flops_are_those_that_torch_counts_apart_from_those_of_attention(name):
    model, tokens = preset(name), 7
    if moe.routers(model):
        model.set_experts_implementation("eager")  # in matrix multiplications that torch counts
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    models.with_fast_experts(model)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert counted == 2 * tokens * recount(model)[2]


def test_drafts_are_counted_apart_and_only_where_they_are_trained():
    model = preset("mtp")
    (layer,) = model.mtp.layers
    own = sum(m.in_features * m.out_features for m in layer.modules() if isinstance(m, nn.Linear))
    norms = 5 * 128
    assert sum(p.numel() for p in layer.parameters()) == own + norms
    policy = Policy(model)
    assert policy.aux_flops_per_token(pretraining=True) == 2 * (own + norms + VOCABULARY * 128)
    assert policy.aux_flops_per_token() == 0


def test_the_bases_that_are_compared_have_as_many_parameters_that_a_token_meets():
    dense = models.facts(preset("dense")).active
    for name in ("moe", "mla", "mtp", "deepseek", "moe-coarse", "moe-fine", "moe-shared"):
        assert models.facts(preset(name)).active == pytest.approx(dense, rel=0.02)
    totals = [models.facts(preset(name)).parameters for name in ("moe", "moe-coarse", "moe-fine", "moe-shared")]
    assert max(totals) < 1.01 * min(totals)


@pytest.mark.parametrize("name", BUILT)
def test_a_cache_holds_what_the_formula_says(name):
    facts = models.facts(preset(name))
    assert facts.cache_bytes == 4 * facts.cache_elements


def test_latents_are_28_percent_of_the_cache_of_all_heads_and_fewer_heads_less():
    cache = {name: models.facts(preset(name)).cache_elements for name in BUILT}
    heads = {"dense": 8, "moe": 8, "mtp": 8, "gqa": 2, "mqa": 1}
    assert {name: cache[name] for name in heads} == {name: 2 * n * 16 * 4 for name, n in heads.items()}
    assert cache["dense"] == 1024
    assert cache["mla"] == cache["deepseek"] == (64 + 8) * 4 == 288


@pytest.mark.parametrize(
    ("kind", "of_kind"),
    [
        ("mamba", {"state_size": 4}),
        ("lfm2", HEADS | {"layer_types": ["conv", "full_attention"], "intermediate_size": 32}),
    ],
)
def test_a_model_that_keeps_states_has_no_cache_of_so_much_a_token(kind, of_kind):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, bos_token_id=None, **of_kind))
    facts = models.facts(model)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < facts.flops_per_token <= 2 * facts.parameters
    assert (facts.cache_elements, facts.cache_bytes) == (None, None)
