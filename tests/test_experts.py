"""Experts multiplied one by one give what transformers' own implementations give, and the same gradients."""

import copy

import pytest
import torch
from transformers.integrations.moe import grouped_mm_experts_forward

from harness import experts, models
from harness.pretrain import character_tokenizer

TOKENS, K = 50, 3


def mixture():
    torch.manual_seed(0)
    architecture = models.presets()["moe"].architecture
    return models.new(architecture, character_tokenizer()).model.layers[0].mlp.experts


def asked(most):
    """Each token's experts, in no order, among the first `most`."""
    return torch.stack([torch.randperm(most)[:K] for _ in range(TOKENS)])


def results(mixture, forward, asked_NK):
    """What it says, and the gradients of all that it depends on."""
    torch.manual_seed(1)
    x = torch.randn(TOKENS, mixture.down_proj.shape[1], requires_grad=True)
    weights = torch.rand(TOKENS, K, requires_grad=True)
    mixture.zero_grad()
    said = forward(mixture, x, asked_NK, weights)
    (said * torch.randn_like(said)).sum().backward()
    return [said.detach(), x.grad, weights.grad, mixture.gate_up_proj.grad, mixture.down_proj.grad]


def each(experts_, x_ND, asked_NK, weight_NK):
    """By the formula, token by token."""
    rows = []
    for x, ids, weights in zip(x_ND, asked_NK, weight_NK, strict=True):
        found = 0
        for e, w in zip(ids, weights, strict=True):
            gate, up = (experts_.gate_up_proj[e] @ x).chunk(2)
            found = found + w * (experts_.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
        rows.append(found)
    return torch.stack(rows)


@pytest.mark.parametrize("most", [15, 4])
@pytest.mark.parametrize("reference", [each, grouped_mm_experts_forward])
def test_products_one_by_one_are_those_of_the_formula_and_of_transformers(most, reference):
    module, ids = mixture(), asked(most)
    for mine, other in zip(results(module, experts.product_each, ids), results(module, reference, ids), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_an_expert_whom_nobody_asks_has_a_gradient_of_zero():
    *_, gate_up, down = results(mixture(), experts.product_each, asked(4))
    for gradient in (gate_up, down):
        assert gradient[4:].abs().max() == 0
        assert (gradient[:4].flatten(1).abs().max(1).values > 0).all()


@pytest.mark.parametrize("other", ["has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel"])
def test_experts_of_another_kind_are_left_to_transformers(monkeypatch, other):
    module = copy.copy(mixture())
    setattr(module, other, True)
    monkeypatch.setattr(experts, "grouped_mm_experts_forward", lambda *_: "theirs")
    assert experts.product_each(module, torch.zeros(1, 128), torch.zeros(1, K, dtype=torch.long), torch.zeros(1, K)) == "theirs"


def test_a_model_of_experts_takes_them_and_its_folder_does_not_ask_for_them(tmp_path):
    model = models.new(models.presets()["moe"].architecture, character_tokenizer())
    assert model.config._experts_implementation == experts.NAME
    model.save_pretrained(tmp_path)
    assert experts.NAME not in (tmp_path / "config.json").read_text()
