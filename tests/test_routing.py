"""Routers at work: tokens kept from the best experts, routers watched, and what a policy does with what it sees."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from harness import moe
from harness.method import Batch
from harness.moe import Balancing
from harness.policy import Scalar
from methods._preferences import Pairs

SEQUENCE, BATCH = Balancing(kind="sequence", alpha=0.3), Balancing(kind="batch", alpha=0.3)

# keeping tokens from the best


@pytest.mark.parametrize("groups", [{}, {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}])
@pytest.mark.parametrize("name", ["moe", "deepseek"])
def test_without_the_best_0_nothing_changes(name, groups):
    policy, batch = tiny.policy(name, **groups), tiny.batch()
    with torch.no_grad():
        before = policy.logits(batch.tokens_BT)
        with moe.without_the_best(policy.model, 0):
            assert torch.allclose(policy.logits(batch.tokens_BT), before, atol=1e-6)
        with moe.without_the_best(policy.model, 1):
            assert not torch.allclose(policy.logits(batch.tokens_BT), before, atol=1e-3)
        assert torch.equal(policy.logits(batch.tokens_BT), before)


@pytest.mark.parametrize("r", [0, 1, 3, 5])
def test_without_the_best_r_the_next_k_are_asked_and_weighed_by_their_scores(r):
    one = tiny.router()
    x_ND = torch.randn(30, 32)
    with moe.without_the_best(one, r):
        logits_NE, weights_NK, asked_NK = one(x_ND)
    order_NE = (logits_NE.sigmoid() + one.e_score_correction_bias).argsort(descending=True)
    for n in range(30):
        assert set(asked_NK[n].tolist()) == set(order_NE[n, r : r + 2].tolist())
        of_asked = logits_NE[n, asked_NK[n]].sigmoid()
        assert torch.allclose(weights_NK[n], of_asked / of_asked.sum())


def test_without_the_best_each_token_asks_among_the_groups_that_are_best_without_them():
    one = tiny.router(n_routed_experts=12, n_group=3, topk_group=2)
    x_ND = torch.randn(30, 32)
    with moe.without_the_best(one, 2):
        logits_NE, _, asked_NK = one(x_ND)
    for choice_E, asked_K in zip(logits_NE.sigmoid() + one.e_score_correction_bias, asked_NK, strict=True):
        choice = choice_E.tolist()
        for e in sorted(range(12), key=lambda e: -choice[e])[:2]:
            choice[e] = float("-inf")
        groups = sorted(range(3), key=lambda g: -sum(sorted(choice[4 * g : 4 * g + 4])[-2:]))[:2]
        among = [e for g in groups for e in range(4 * g, 4 * g + 4)]
        assert set(asked_K.tolist()) == set(sorted(among, key=lambda e: -choice[e])[:2])


def test_there_must_be_experts_left_to_ask():
    one = tiny.router()
    with moe.without_the_best(one, 6), pytest.raises(ValueError, match="without the best 6 there are fewer than 2 experts"):
        one(torch.randn(3, 32))


@pytest.mark.parametrize(("changes", "left"), [({}, 5), ({"n_routed_experts": 12, "n_group": 3, "topk_group": 2}, 6)])
def test_spare_is_how_many_experts_every_token_can_do_without(changes, left):
    one = tiny.model("moe", **changes)
    assert moe.spare(one) == left
    tokens = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), moe.without_the_best(one, left):
        one(tokens)


# watching


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("block", [moe.watched, lambda model: moe.without_the_best(model, 1)])
def test_no_hook_outlives_its_block_even_one_that_fails(block):
    model = tiny.model("deepseek")
    with block(model):
        assert hooks(model) > 0
    assert hooks(model) == 0

    with pytest.raises(KeyError), block(model):
        raise KeyError("what went wrong")
    assert hooks(model) == 0


def test_every_layer_with_experts_is_watched_in_its_order():
    model, batch = tiny.model("moe", first_k_dense_replace=1, num_hidden_layers=3), tiny.batch()
    with torch.no_grad(), moe.watched(model) as routing:
        model(input_ids=batch.tokens_BT)
    assert [layer.router for layer in routing] == [model.model.layers[i].mlp.gate for i in (1, 2)] == moe.routers(model)
    assert all(layer.logits_NE.shape == (batch.tokens_BT.numel(), 7) for layer in routing)
    assert all(layer.asked_NK.shape == (batch.tokens_BT.numel(), 2) for layer in routing)


class ScoringTopkRouter(nn.Linear):
    """Says scores and nothing else."""


class MixedTopkRouter(nn.Module):
    """Without a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scorer = ScoringTopkRouter(4, 3)
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x_ND):
        scores_NE = self.scorer(self.weight * x_ND)
        return scores_NE, *scores_NE.topk(2)


def test_routers_are_those_with_a_weight_for_each_expert_and_watched_are_those_that_say_who_is_asked():
    one = MixedTopkRouter()
    assert moe.routers(one) == [one.scorer]
    with moe.watched(one) as routing:
        one(torch.randn(5, 4))
    assert routing == []


# what a policy does with it


def recount(policy, tokens_BT, mask_BT):
    """[L, E] of a forward pass, token by token."""
    with torch.no_grad(), moe.watched(policy.model) as routing:
        policy.logits(tokens_BT)
    counts = torch.zeros(len(routing), 7)
    width = tokens_BT.shape[1] - 1
    for row, layer in zip(counts, routing, strict=True):
        for b in range(len(tokens_BT)):
            for t in range(width):
                if mask_BT[b, t + 1]:  # the token at t is read to predict that at t+1
                    for e in layer.asked_NK[b * width + t]:
                        row[e] += 1
    return counts


def test_the_load_of_a_step_is_that_of_the_tokens_that_predict_masked_ones_in_all_micro_batches():
    policy, batches = tiny.policy("moe"), [tiny.batch(seed=seed) for seed in range(3)]
    expected = sum(recount(policy, batch.tokens_BT, batch.mask_BT) for batch in batches)
    before = [r.e_score_correction_bias.clone() for r in moe.routers(policy.model)]
    for batch in batches:
        policy.logp(batch.tokens_BT)
        assert policy.aux_loss(batch).item() == 0
    columns = policy.after_step()
    assert columns == moe.columns(expected) | {"moe/router_entropy": columns["moe/router_entropy"]}
    for r, before_E, counts_E in zip(moe.routers(policy.model), before, expected, strict=True):
        moved_E = r.e_score_correction_bias - before_E
        assert torch.allclose(moved_E, 0.003 * (counts_E.mean() - counts_E).sign(), atol=1e-7)
    assert policy.after_step() == {}


def test_the_bias_follows_the_load_of_all_steps_the_older_the_less():
    policy, expected = tiny.policy("moe"), [torch.zeros(7), torch.zeros(7)]
    for seed in range(5):
        batch = tiny.batch(seed=seed)
        counts = recount(policy, batch.tokens_BT, batch.mask_BT)
        expected = [moe.KEPT * old_E + new_E for old_E, new_E in zip(expected, counts, strict=True)]
        before = [r.e_score_correction_bias.clone() for r in moe.routers(policy.model)]
        policy.logp(batch.tokens_BT)
        policy.aux_loss(batch)
        policy.after_step()
        for r, before_E, load_E in zip(moe.routers(policy.model), before, expected, strict=True):
            assert torch.allclose(r.e_score_correction_bias - before_E, 0.003 * (load_E.mean() - load_E).sign(), atol=1e-7)


@pytest.mark.parametrize("balancing", [SEQUENCE, BATCH])
def test_what_is_added_to_a_loss_is_the_balance_loss_of_every_forward_pass(balancing):
    policy = tiny.policy("moe", balancing={"kind": balancing.kind, "alpha": balancing.alpha})
    chosen, rejected = tiny.batch(), tiny.batch(seed=1, longest=7)
    pairs = Pairs(chosen.tokens_BT, chosen.mask_BT, rejected.tokens_BT, rejected.mask_BT)
    expected = 0.0
    for side in (pairs.chosen(), pairs.rejected()):
        with torch.no_grad(), moe.watched(policy.model) as routing:
            policy.logits(side.tokens_BT)
        expected += float(moe.balance_loss(routing, side.mask_BT[:, 1:], balancing))
    before = [r.e_score_correction_bias.clone() for r in moe.routers(policy.model)]
    policy.logp(pairs.tokens_BT), policy.logp(pairs.rejected_BT)
    added = policy.aux_loss(pairs)
    assert added.item() == pytest.approx(expected, rel=1e-5)
    added.backward()
    assert all(r.weight.grad.abs().sum() > 0 for r in moe.routers(policy.model))
    policy.after_step()
    assert all(
        torch.equal(r.e_score_correction_bias, b) for r, b in zip(moe.routers(policy.model), before, strict=True)
    )  # that is the bias's own way
    assert policy.aux_loss(pairs).item() == 0


@pytest.mark.parametrize("name", ["dense", "mla"])
def test_a_model_without_experts_adds_nothing_and_plots_nothing(name):
    policy, batch = tiny.policy(name), tiny.batch()
    policy.logp(batch.tokens_BT)
    assert policy._seen == []
    added = policy.aux_loss(batch)
    assert float(added) == 0
    assert not added.requires_grad
    assert policy.after_step() == {}


def test_a_loss_that_reads_a_copy_of_its_tokens_is_refused():
    policy, batch = tiny.policy("moe"), tiny.batch()
    policy.logp(batch.tokens_BT.clone())
    with pytest.raises(ValueError, match="a loss must read the tokens of Batch as they are, not a copy or a part of them"):
        policy.aux_loss(batch)


def test_a_forward_pass_without_gradient_is_not_remembered():
    policy, batch = tiny.policy("deepseek"), tiny.batch()
    with torch.no_grad():
        policy.logp(batch.tokens_BT)
    assert policy._seen == []
    assert policy.aux_loss(batch).item() == 0
    assert policy.after_step() == {}


def test_a_copy_of_a_policy_reports_to_itself_and_not_to_the_original():
    policy, batch = tiny.policy("moe"), tiny.batch()
    other = copy.deepcopy(policy)
    other.logp(batch.tokens_BT)
    assert (len(policy._seen), len(other._seen)) == (0, 1)
    assert policy.aux_loss(batch).item() == 0
    assert policy.after_step() == {}
    before = [r.e_score_correction_bias.clone() for r in moe.routers(policy.model)]
    other.aux_loss(batch)
    assert other.after_step()
    assert all(torch.equal(r.e_score_correction_bias, b) for r, b in zip(moe.routers(policy.model), before, strict=True))
    assert any(not torch.equal(r.e_score_correction_bias, b) for r, b in zip(moe.routers(other.model), before, strict=True))


def test_a_critic_made_of_a_mixture_does_not_report_to_it():
    policy, batch = tiny.policy("moe"), tiny.batch()
    critic = Scalar(policy)
    critic.before(batch.tokens_BT).sum().backward()
    assert policy._seen == []
    assert policy.after_step() == {}
    assert hooks(policy.model) == hooks(critic) == 0


def test_rows_and_parts_of_a_batch_add_up_to_the_whole_where_the_loss_is_of_each_sequence():
    policy, batch = tiny.policy("deepseek", balancing={"kind": "sequence", "alpha": 0.3}), tiny.batch(rows=5)

    def gradients(parts):
        policy.zero_grad()
        for rows in parts:
            part = batch[rows].trimmed()
            loss = (-policy.logp(part.tokens_BT) * part.mask_BT).sum(-1).mean() + policy.aux_loss(part, pretraining=True)
            (loss * len(rows) / len(batch)).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters()]), policy.after_step()

    whole, columns = gradients([torch.arange(5)])
    parts, same = gradients(batch.parts(2))
    assert torch.allclose(parts, whole, atol=1e-5)
    assert same == pytest.approx(columns, abs=1e-6)


def test_padding_and_what_stands_beside_a_sequence_change_nothing_of_it():
    policy, batch = tiny.policy("moe"), tiny.batch()
    with torch.no_grad():
        together_BT = policy.logp(batch.tokens_BT) * batch.mask_BT
        for b in range(len(batch)):
            one = batch[torch.tensor([b])].trimmed()
            alone_1T = policy.logp(one.tokens_BT) * one.mask_BT
            assert torch.allclose(alone_1T[0], together_BT[b, : alone_1T.shape[1]], atol=1e-5)


def test_a_batch_knows_which_mask_goes_with_its_tokens():
    batch = tiny.batch()
    assert batch.mask_of(batch.tokens_BT) is batch.mask_BT
    with pytest.raises(ValueError, match="not a copy"):
        replace(batch, tokens_BT=batch.tokens_BT.clone()).mask_of(batch.tokens_BT)
    assert isinstance(batch, Batch)
