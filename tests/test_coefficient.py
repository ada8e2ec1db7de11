"""The gradient coefficient of each method against what its paper says, and the gradient rebuilt from it against autograd's."""

from __future__ import annotations

import pytest
import torch
from enumerable import Enumeration, N, Tabular
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.coefficient import coefficient
from harness.method import padded
from harness.policy import Policy
from methods.distill import Distill
from methods.dpo import DPO
from methods.grpo import GRPO, GRPOBatch, advantages
from methods.sft import SFT

torch.set_num_threads(1)

REWARD = (torch.arange(N) % 3 == 0).double()


def measured(method, policy=None, **changes):
    run = Enumeration(policy or Tabular(0), REWARD)
    for name, value in changes.items():
        setattr(run, name, value)
    run.task.problems = lambda _: range(10_000)
    method.setup(run)
    with torch.no_grad():
        batch = method.batch(run)
    return coefficient(method, run.policy, batch, len(batch)), batch


def test_sft_pushes_every_token_by_one():
    found, _ = measured(SFT(lr=1e-3, prompts=N))
    assert found["over"] == "tokens"
    assert found["low"] == pytest.approx(1, abs=1e-5)
    assert found["high"] == pytest.approx(1, abs=1e-5)
    assert found["error"] < 1e-5


def test_grpo_pushes_every_token_by_the_advantage_of_its_completion():
    found, batch = measured(GRPO(lr=1e-3, prompts=1, group=N, beta=0.0))
    expected = advantages(REWARD[None])
    assert found["up"] == pytest.approx(float(expected.max()), rel=1e-4)
    assert found["down"] == pytest.approx(float(expected.min()), rel=1e-4)
    assert found["share_up"] == pytest.approx(float(batch.mask_BT[REWARD == 1].sum() / batch.mask_BT.sum()), abs=0.05)
    assert found["error"] < 1e-5


def test_dpo_lifts_the_chosen_as_much_as_it_presses_the_rejected_of_the_same_length():
    found, batch = measured(DPO(lr=1e-3, prompts=1, group=N, beta=0.1))
    longest = max(float(batch.mask_BT.sum(-1).max()), float(batch.rejected_mask_BT.sum(-1).max()))
    assert found["high"] <= 0.05 * longest + 1e-6  # β σ(0) |y|
    assert found["up"] > 0 > found["down"]
    assert found["error"] < 1e-5


def test_a_teachers_distribution_moves_the_vocabulary_and_has_no_error_to_report():
    method = Distill(lr=1e-3, targets="soft", alpha=1.0, prompts=N)
    found, _ = measured(method, model=lambda _: Tabular(3).frozen())
    assert found["over"] == "vocabulary"
    assert found["error"] is None


def test_measuring_leaves_no_gradient_and_no_random_number_behind():
    policy = Tabular(0)
    before = torch.get_rng_state()
    measured(SFT(lr=1e-3, prompts=N), policy)
    assert policy.table.grad is None
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_without_gradient_has_no_coefficient_to_speak_of():
    found, _ = measured(GRPO(lr=1e-3, prompts=1, group=N, beta=0.0, scale="none"), reward_B=torch.zeros(N).double())
    assert (found["zero"], found["up"], found["down"]) == (1.0, None, None)


@pytest.mark.parametrize("method", [GRPO(lr=1e-3, beta=0.1), SFT(lr=1e-3)])
def test_the_coefficient_is_the_same_where_logits_are_made_for_completions_alone(monkeypatch, method):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    policy = Policy(Qwen2ForCausalLM(Qwen2Config(**sizes, vocab_size=50, initializer_range=0.3)))
    batch = padded([[5, 6, 7, 8], [9, 8, 7, 6, 5], [1, 2, 3, 4]], [[4, 3], [2, 1, 11, 12], [15]], pad=0)
    if isinstance(method, GRPO):
        logp_BT = policy.logp(batch.tokens_BT, batch.mask_BT).detach()
        advantage_B = torch.tensor([1.0, -2.0, 0.5])
        batch = GRPOBatch(
            **vars(batch), logp_old_BT=logp_BT, logp_ref_BT=logp_BT - 0.1, advantage_B=advantage_B, weight_BT=batch.mask_BT
        )
    found = list[dict]()
    for wide in (True, False):
        monkeypatch.setattr(Policy, "wide", wide)
        found.append({k: v for k, v in coefficient(method, policy, batch, len(batch)).items() if v is not None})
    assert found[0].pop("over") == found[1].pop("over") == "tokens"
    assert found[0]["tokens"] == 7
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
