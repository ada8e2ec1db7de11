"""What the modules for further tokens know, what they learn from, and that they never touch what the model says."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F

from harness import models, moe
from harness.method import Batch, padded
from harness.mtp import Weights
from harness.policy import checksum

NAMES = ("mtp", "deepseek")
DEEPER = {"num_nextn_predict_layers": 2}


def read(model, tokens_BT):
    """The last hidden state, and h^1 … h^D."""
    hidden_BTD = model(input_ids=tokens_BT, output_hidden_states=True).hidden_states[-1]
    return hidden_BTD, model.mtp.hidden(model, tokens_BT, hidden_BTD)


def sequences(width=9, rows=3):
    return torch.randint(tiny.TOKENS.start, tiny.TOKENS.stop, (rows, width), generator=torch.Generator().manual_seed(0))


def rms(x_D, norm):
    return norm.weight * x_D * (x_D.square().mean() + norm.variance_epsilon).rsqrt()


def without_modules(policy):
    other = copy.deepcopy(policy)
    del other.model.mtp
    return other


@pytest.mark.parametrize("name", NAMES)
def test_a_module_reads_at_each_position_the_state_there_and_the_token_that_is_k_ahead(name):
    model, tokens_BT = tiny.model(name, **DEEPER), sequences()
    with torch.no_grad():
        hidden_BTD, found = read(model, tokens_BT)
        before_BTD = hidden_BTD
        for k, (layer, h_BTD) in enumerate(zip(model.mtp.layers, found, strict=True), start=1):
            width = tokens_BT.shape[1] - k
            assert h_BTD.shape == (3, width, 32)
            for b in range(3):
                rows = []
                for i in range(width):
                    embedded_D = model.get_input_embeddings().weight[tokens_BT[b, i + k]]
                    pair = torch.cat([rms(embedded_D, layer.enorm), rms(before_BTD[b, i], layer.hnorm)])
                    rows.append(layer.eh_proj.weight @ pair)
                x_1TD = torch.stack(rows)[None]
                position_1T = torch.arange(width)[None]
                turns = model.model.rotary_emb(x_1TD, position_1T)
                causal_11TT = torch.full((width, width), float("-inf")).triu(1)[None, None]
                out_1TD = layer.mtp_block(x_1TD, attention_mask=causal_11TT, position_embeddings=turns)
                expected_TD = torch.stack([rms(x_D, layer.post_norm) for x_D in out_1TD[0]])
                assert torch.allclose(h_BTD[b], expected_TD, atol=1e-5)
            before_BTD = h_BTD


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_the_token_at_i_and_k_and_1_depends_on_all_tokens_up_to_i_and_k_and_on_no_other(name):
    model, tokens_BT = tiny.model(name, **DEEPER), sequences(rows=1)
    with torch.no_grad():
        _, before = read(model, tokens_BT)
        for j in range(tokens_BT.shape[1]):
            changed_BT = tokens_BT.clone()
            changed_BT[0, j] = tiny.TOKENS.start + (changed_BT[0, j] - tiny.TOKENS.start + 1) % len(tiny.TOKENS)
            _, after = read(model, changed_BT)
            for k, (b_BTD, a_BTD) in enumerate(zip(before, after, strict=True), start=1):
                moved_T = (b_BTD - a_BTD)[0].abs().amax(-1)  # experts of a token are summed in an order that others decide
                assert (moved_T[: max(0, j - k)] < 1e-5).all()
                assert (moved_T[max(0, j - k) :] > 1e-4).all()


def test_a_sequence_too_short_for_a_module_is_not_read_by_it():
    model = tiny.model("deepseek", **DEEPER)
    for width, shapes in {1: [], 2: [1], 3: [2, 1], 4: [3, 2]}.items():
        _, found = read(model, sequences(width))
        assert [h_BTD.shape[1] for h_BTD in found] == shapes


@pytest.mark.parametrize("completion", [1, 2])
def test_completions_of_a_token_or_two_leave_a_finite_loss_and_gradient(completion):
    policy = tiny.policy("deepseek", **DEEPER, balancing={"kind": "sequence", "alpha": 0.1})
    batch = padded([[5], [6]], [[7] * completion, [8]], pad=0)
    loss = -policy.logp(batch.tokens_BT).sum() + policy.aux_loss(batch, pretraining=True)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_mean_over_depths_sequences_and_tokens_of_the_log_probability(name, depth):
    model, batch = tiny.model(name, num_nextn_predict_layers=depth), tiny.batch()
    with torch.no_grad():
        hidden_BTD, found = read(model, batch.tokens_BT[:, :-1])
        actual = model.mtp.loss(model, batch.tokens_BT, hidden_BTD, batch.mask_BT, detached=False)
        total = 0.0
        for k, h_BTD in enumerate(found, start=1):
            logp_BTV = model.lm_head(h_BTD).log_softmax(-1)
            for b in range(len(batch)):
                at = [t for t in range(k + 1, batch.tokens_BT.shape[1]) if batch.mask_BT[b, t]]
                nll = [-float(logp_BTV[b, t - k - 1, batch.tokens_BT[b, t]]) for t in at]
                total += sum(nll) / max(1, len(nll)) / len(batch) / depth
    assert actual.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_detached_the_modules_learn_and_nothing_else_does(name, detached):
    model, batch = tiny.model(name, **DEEPER), tiny.batch()
    hidden_BTD = model(input_ids=batch.tokens_BT[:, :-1], output_hidden_states=True).hidden_states[-1]
    model.mtp.loss(model, batch.tokens_BT, hidden_BTD, batch.mask_BT, detached=detached).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    modules = {n for n, p in model.named_parameters() if n.startswith("mtp.")}
    assert modules <= moved
    trunk = {n for n, p in model.named_parameters()} - modules
    assert moved & trunk == (set() if detached else trunk)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_the_same_with_and_without_the_modules(name):
    policy, batch = tiny.policy(name, **DEEPER), tiny.batch()
    assert policy.drafts == 2
    bare = without_modules(policy)
    assert bare.drafts == 0
    assert torch.equal(policy.logp(batch.tokens_BT), bare.logp(batch.tokens_BT))
    with torch.no_grad():
        assert torch.equal(policy.logp(batch.tokens_BT), bare.logp(batch.tokens_BT))
    assert policy.flops_per_token() == bare.flops_per_token()


@pytest.mark.parametrize("pretraining", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_weight_of_pretraining_or_of_post_training_times_the_loss_is_added(name, pretraining):
    policy = tiny.policy(name, **DEEPER, mtp={"weight": 0.3, "post_weight": 0.2})
    batch, model = tiny.batch(), policy.model
    with torch.no_grad():
        hidden_BTD = model(input_ids=batch.tokens_BT[:, :-1], output_hidden_states=True).hidden_states[-1]
        loss = model.mtp.loss(model, batch.tokens_BT, hidden_BTD, batch.mask_BT, detached=True)
    policy.logp(batch.tokens_BT)
    added = policy.aux_loss(batch, pretraining)
    assert added.item() == pytest.approx((0.3 if pretraining else 0.2) * loss.item(), rel=1e-5)
    added.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.mtp.parameters())
    assert (model.get_input_embeddings().weight.grad is not None) == pretraining


def test_in_post_training_the_modules_are_left_alone_unless_the_config_says_otherwise():
    policy, batch = tiny.policy("mtp"), tiny.batch()
    assert policy.mtp_weights == Weights(weight=0.3)
    policy.logp(batch.tokens_BT)
    added = policy.aux_loss(batch)
    assert added.item() == 0
    assert not added.requires_grad
    assert (policy.aux_flops_per_token(), policy.aux_flops_per_token(pretraining=True) > 0) == (0, True)


def test_the_experts_of_the_modules_are_balanced_where_the_modules_are_trained():
    batch, alpha = tiny.batch(), 0.5
    for weight, layers in {0.0: 2, 0.2: 4}.items():
        policy = tiny.policy("deepseek", **DEEPER, mtp={"post_weight": weight}, balancing={"kind": "sequence", "alpha": alpha})
        policy.logp(batch.tokens_BT)
        policy.aux_loss(batch)
        assert len(policy.asked) == layers
        asked = [int(counts_E.sum()) for counts_E in policy.asked.values()]
        expected = [int(batch.mask_BT[:, k:].sum()) * 2 for k in (1, 1, 2, 3)]
        assert asked == expected[:layers]
        assert list(policy.asked) == moe.routers(policy.model)[:layers]


def overfitted(detached, steps=40):
    """A model and modules that have learnt one sequence, whose tokens do not say what comes next by themselves."""
    model = tiny.model("mtp", **DEEPER, num_hidden_layers=1, first_k_dense_replace=1, initializer_range=0.2)
    tokens_BT = torch.tensor([[4, 5, 4, 6, 5, 5, 7, 4, 8, 6, 6, 9, 4, 5]])
    batch = Batch(tokens_BT, torch.ones(tokens_BT.shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        out = model(input_ids=tokens_BT[:, :-1], output_hidden_states=True)
        nll = F.cross_entropy(out.logits.transpose(1, 2), tokens_BT[:, 1:])
        loss = nll + 0.3 * model.mtp.loss(model, tokens_BT, out.hidden_states[-1], batch.mask_BT, detached)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokens_BT


@pytest.mark.parametrize("detached", [True, False])
def test_the_modules_learn_to_say_the_token_after_the_next_and_the_one_after_that(detached):
    model, tokens_BT = overfitted(detached)
    with torch.no_grad():
        _, found = read(model, tokens_BT)
        for k, h_BTD in enumerate(found, start=1):
            said_BT = model.lm_head(h_BTD).argmax(-1)
            assert said_BT[0, :-1].tolist() == tokens_BT[0, k + 1 :].tolist()


def test_a_new_model_has_as_many_modules_as_its_architecture_says_and_different_ones():
    assert not hasattr(tiny.model("dense"), "mtp")
    assert not hasattr(tiny.model("mtp", num_nextn_predict_layers=0), "mtp")
    first, second = tiny.model("mtp", **DEEPER).mtp.layers
    assert checksum(first) != checksum(second)
    assert first.eh_proj.weight.std().item() == pytest.approx(0.08, rel=0.1)
    assert models.facts(tiny.model("mtp", **DEEPER)) == models.facts(tiny.model("dense"))


@pytest.mark.parametrize("wrong", [{"weight": -0.1}, {"post_weight": -1}])
def test_weights_are_not_negative(wrong):
    with pytest.raises(ValueError, match="must not be negative"):
        Weights(**wrong)
