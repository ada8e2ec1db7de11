"""A base survives its folder, is one that transformers loads, and learns the same in other ways of computing."""

import pytest
import tiny
import torch

from harness import models, moe
from harness.policy import Policy, checksum

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", tiny.KINDS)
def test_a_model_survives_its_folder_and_transformers_loads_its_trunk(name, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny.model(name, **({"num_nextn_predict_layers": 2} if name == "mtp" else {}))
    models.save(model, tiny.tokenizer(), tmp_path)
    assert (tmp_path / models.DRAFTS).exists() == hasattr(model, "mtp")
    loaded, tokenizer = models.load(tmp_path)
    assert checksum(loaded) == checksum(model)
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert [r.e_score_correction_bias.abs().sum() > 0 for r in moe.routers(loaded)] == [True] * len(moe.routers(model))
    assert Policy(loaded).balancing == Policy(model).balancing
    assert Policy(loaded).mtp_weights == Policy(model).mtp_weights
    batch = tiny.batch()
    with torch.no_grad():
        logits_BTV = model(input_ids=batch.tokens_BT).logits
        assert torch.equal(loaded(input_ids=batch.tokens_BT).logits, logits_BTV)
        if hasattr(model, "mtp"):
            found = [
                m.mtp.loss(m, batch.tokens_BT, m.model(batch.tokens_BT[:, :-1])[0], batch.mask_BT, False) for m in (model, loaded)
            ]
            assert torch.equal(*found)
        with models.maybe_empty():
            trunk, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.allclose(trunk(input_ids=batch.tokens_BT).logits, logits_BTV, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "mla", *tiny.KINDS])
def test_transformers_continues_a_prompt_with_the_most_likely_tokens(name):
    model = tiny.model(name).eval()
    prompt_BT = tiny.batch(rows=1).tokens_BT[:, :3]
    with torch.no_grad():
        written = model.generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), max_new_tokens=5, do_sample=False)
        for n in range(3, written.shape[1]):
            assert written[0, n] == model(input_ids=written[:, :n]).logits[0, -1].argmax()
    assert 3 < written.shape[1] <= 8


@pytest.mark.parametrize("name", tiny.KINDS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradient_nor_load(name):
    balancing = {} if name == "mtp" else {"balancing": {"kind": "sequence", "alpha": 0.3}}
    policy, batch = tiny.policy(name, **balancing).train(), tiny.batch()
    loss, gradient = tiny.step(policy, batch)
    plotted = policy.after_step()
    policy.model.activation_checkpointing_enable()
    assert policy.model.is_activation_checkpointing
    again, same = tiny.step(policy, batch)
    assert torch.allclose(again, loss)
    assert torch.allclose(same, gradient, atol=1e-5)
    assert policy.after_step() == plotted


@pytest.mark.parametrize("name", ["mla", *tiny.KINDS])
def test_in_bfloat16_loss_and_gradient_are_near_those_in_float32(name):
    model, batch = tiny.model(name), tiny.batch()
    loss, gradient = tiny.step(Policy(model), batch)
    rough, near = tiny.step(Policy(model, torch.bfloat16), batch)
    assert rough.item() == pytest.approx(loss.item(), rel=0.03)
    assert torch.cosine_similarity(near, gradient, 0) > 0.95
    assert near.isfinite().all()
