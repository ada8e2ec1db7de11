"""Who is asked and what keeps the load even, against loops that say it one token at a time."""

import copy
import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from harness import moe
from harness.method import Batch
from harness.moe import Balancing, Routing
from harness.policy import Scalar
from methods._preferences import Pairs

B, T, E, K = 3, 5, 6, 2
SEQUENCE, BATCH = Balancing(kind="sequence", alpha=0.3), Balancing(kind="batch", alpha=0.3)


def routings(seed=0, layers=2, grad=False):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(layers):
        logits_NE = torch.randn(B * T, E, generator=generator, dtype=torch.float64).requires_grad_(grad)
        asked_NK = torch.rand(B * T, E, generator=generator).topk(K).indices  # anything: what is asked is no function of scores
        found.append(Routing(nn.Identity(), logits_NE, asked_NK))
    return found


def mask(seed=0):
    mask_BT = (torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.7).double()
    mask_BT[:, 2] = 1
    return mask_BT


def share(logits_E, e):
    scores = [1 / (1 + (-x).exp()) for x in logits_E]
    return scores[e] / sum(scores)


def loop(layer, tokens):
    """Σ_e f_e P_e over these tokens, from the formulas."""
    total = 0.0
    for e in range(E):
        asked = sum(1 for n in tokens if e in layer.asked_NK[n].tolist())
        f = E / (K * len(tokens)) * asked
        p = sum(share(layer.logits_NE[n], e) for n in tokens) / len(tokens)
        total = total + f * p
    return total


def masked(mask_BT, rows):
    return [b * T + t for b in rows for t in range(T) if mask_BT[b, t]]


def tokens_of(rows, layers):
    """The routing of some rows of a batch alone."""
    at = torch.cat([torch.arange(b * T, (b + 1) * T) for b in rows])
    return [Routing(layer.router, layer.logits_NE[at], layer.asked_NK[at]) for layer in layers]


def gradient(loss, layers):
    return torch.stack(torch.autograd.grad(loss, [layer.logits_NE for layer in layers], retain_graph=True))


# load


def test_an_expert_is_counted_once_for_every_masked_token_that_it_is_asked_for():
    layer, mask_BT = routings()[0], mask()
    expected = [sum(e in layer.asked_NK[n].tolist() for n in masked(mask_BT, range(B))) for e in range(E)]
    assert layer.counts(mask_BT.flatten()).tolist() == expected
    assert layer.counts(torch.zeros(B * T)).tolist() == [0] * E


def test_shares_are_the_scores_over_their_sum():
    layer = routings()[0]
    expected = [[float(share(layer.logits_NE[n], e)) for e in range(E)] for n in range(B * T)]
    assert torch.allclose(layer.shares(), torch.tensor(expected, dtype=torch.float64))


def test_load_is_relative_to_the_mean_of_its_layer_and_the_worst_layer_is_plotted():
    counts_LE = torch.tensor([[4.0, 4, 4, 4], [10, 5, 1, 0]])
    assert moe.relative(counts_LE).tolist() == [[1, 1, 1, 1], [2.5, 1.25, 0.25, 0]]
    assert moe.columns(counts_LE) == {"moe/max_violation": 1.5, "moe/min_load": 0.0, "moe/collapsed": 1.0}
    assert moe.columns(counts_LE[:1]) == {"moe/max_violation": 0.0, "moe/min_load": 1.0, "moe/collapsed": 0.0}
    assert moe.relative(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


# balance losses


def test_the_sequence_loss_is_the_mean_over_sequences_of_what_the_formula_says():
    layers, mask_BT = routings(), mask()
    expected = sum(loop(layer, masked(mask_BT, [b])) for layer in layers for b in range(B)) / B * SEQUENCE.alpha
    assert float(moe.balance_loss(layers, mask_BT, SEQUENCE)) == pytest.approx(float(expected))


def test_the_batch_loss_is_what_the_formula_says_of_all_tokens():
    layers, mask_BT = routings(), mask()
    expected = sum(loop(layer, masked(mask_BT, range(B))) for layer in layers) * BATCH.alpha
    assert float(moe.balance_loss(layers, mask_BT, BATCH)) == pytest.approx(float(expected))


@pytest.mark.parametrize("balancing", [SEQUENCE, BATCH])
def test_tokens_outside_the_mask_change_neither_loss_nor_gradient(balancing):
    layers, mask_BT = routings(grad=True), mask()
    before = moe.balance_loss(layers, mask_BT, balancing)
    outside_N = mask_BT.flatten() == 0
    assert (gradient(before, layers)[:, outside_N] == 0).all()
    other = routings(seed=1)
    changed = [
        Routing(
            nn.Identity(),
            torch.where(outside_N[:, None], o.logits_NE, layer.logits_NE),
            torch.where(outside_N[:, None], o.asked_NK, layer.asked_NK),
        )
        for layer, o in zip(layers, other, strict=True)
    ]
    assert moe.balance_loss(changed, mask_BT, balancing).item() == before.item()


@pytest.mark.parametrize("balancing", [SEQUENCE, BATCH])
def test_an_even_load_of_even_scores_costs_alpha_in_each_layer(balancing):
    asked_NK = torch.tensor([[0, 1], [2, 3], [4, 5]]).repeat(2, 1)  # each sequence of three tokens asks every expert once
    even = [Routing(nn.Identity(), torch.full((6, E), 0.7), asked_NK)] * 4
    assert float(moe.balance_loss(even, torch.ones(2, 3), balancing)) == pytest.approx(balancing.alpha * 4)


@pytest.mark.parametrize("balancing", [SEQUENCE, BATCH])
def test_the_loss_pulls_scores_down_where_the_load_is_high(balancing):
    logits_NE = torch.zeros(T, E, requires_grad=True)
    layer = Routing(nn.Identity(), logits_NE, torch.tensor([[0, 1]] * T))
    (down,) = torch.autograd.grad(moe.balance_loss([layer], torch.ones(1, T), balancing), logits_NE)
    assert (down[:, :2] > 0).all()
    assert (down[:, 2:] < 0).all()


def in_parts(layers, mask_BT, balancing, parts):
    return sum(moe.balance_loss(tokens_of(rows, layers), mask_BT[rows], balancing) * len(rows) / B for rows in parts)


def test_the_sequence_loss_part_by_part_is_that_of_the_whole():
    layers, mask_BT = routings(grad=True), mask()
    whole, parts = moe.balance_loss(layers, mask_BT, SEQUENCE), in_parts(layers, mask_BT, SEQUENCE, [[2], [0, 1]])
    assert parts.item() == pytest.approx(whole.item())
    assert torch.allclose(gradient(parts, layers), gradient(whole, layers))


def test_the_batch_loss_part_by_part_is_the_mean_of_the_parts_and_not_that_of_the_whole():
    layers, mask_BT = routings(grad=True), torch.ones(B, T, dtype=torch.float64)
    whole, parts = moe.balance_loss(layers, mask_BT, BATCH), in_parts(layers, mask_BT, BATCH, [[2], [0, 1]])
    each = [moe.balance_loss(tokens_of(rows, layers), mask_BT[rows], BATCH).item() for rows in ([2], [0, 1])]
    assert parts.item() == pytest.approx(each[0] / 3 + each[1] * 2 / 3)
    assert parts.item() != pytest.approx(whole.item(), rel=1e-5)
    assert (gradient(parts, layers) - gradient(whole, layers)).norm() > 0.1 * gradient(whole, layers).norm()


def test_a_sequence_without_a_token_that_counts_costs_nothing():
    layers, mask_BT = routings(), mask()
    mask_BT[1] = 0
    expected = sum(loop(layer, masked(mask_BT, [b])) for layer in layers for b in (0, 2)) / B * SEQUENCE.alpha
    assert float(moe.balance_loss(layers, mask_BT, SEQUENCE)) == pytest.approx(float(expected))


# the router, and its bias


def router(seed=0, **changes):
    return moe.routers(tiny.model("moe", seed, **changes))[0]


@pytest.mark.parametrize("name", ["moe", "deepseek"])
@torch.no_grad()
def test_the_bias_selects_and_never_weighs(name):
    r = moe.routers(tiny.model(name))[0]
    x_ND = torch.randn(50, 32)
    before_NK = r(x_ND)[2]
    r.e_score_correction_bias.copy_(torch.linspace(-1, 1, r.num_experts))
    logits_NE, weights_NK, asked_NK = r(x_ND)
    scores_NE = torch.sigmoid(x_ND @ r.weight.T)
    assert torch.allclose(logits_NE.sigmoid(), scores_NE, atol=1e-6)
    for n in range(50):
        best = sorted(range(r.num_experts), key=lambda e, n=n: -float(scores_NE[n, e] + r.e_score_correction_bias[e]))[: r.top_k]
        assert set(asked_NK[n].tolist()) == set(best)
        of_asked = scores_NE[n, asked_NK[n]]
        assert torch.allclose(weights_NK[n], of_asked / of_asked.sum(), atol=1e-6)
    assert asked_NK.sort(-1).values.tolist() != before_NK.sort(-1).values.tolist()


def test_the_bias_moves_by_its_rate_towards_an_even_load_and_not_at_it():
    r = router()
    before_E = r.e_score_correction_bias.clone()
    moe.adjust(r, torch.tensor([0.0, 3, 3, 3, 9, 2, 1]), rate=0.01)
    moved_E = r.e_score_correction_bias - before_E
    assert torch.allclose(moved_E, 0.01 * torch.tensor([1.0, 0, 0, 0, -1, 1, 1]), atol=1e-7)
    moe.adjust(r, torch.full((7,), 5.0), rate=0.01)
    assert torch.equal(r.e_score_correction_bias, before_E + moved_E)
    moe.adjust(r, torch.zeros(7), rate=0.01)
    assert torch.equal(r.e_score_correction_bias, before_E + moved_E)
    assert not r.e_score_correction_bias.requires_grad


def test_the_bias_evens_the_load_of_a_router_that_does_not_learn():
    r = router()
    x_ND = torch.randn(400, 32) + torch.randn(32)  # a common direction, which all tokens ask the same experts for

    def violation():
        counts_E = Routing(r, *(r(x_ND)[i] for i in (0, 2))).counts(torch.ones(400))
        moe.adjust(r, counts_E, rate=0.02)
        return float((moe.relative(counts_E[None]) - 1).max())

    seen = [violation() for _ in range(150)]
    assert seen[0] > 0.5
    assert max(seen[-10:]) < 0.25 * seen[0]


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
    one = router()
    x_ND = torch.randn(30, 32)
    with moe.without_the_best(one, r):
        logits_NE, weights_NK, asked_NK = one(x_ND)
    order_NE = (logits_NE.sigmoid() + one.e_score_correction_bias).argsort(descending=True)
    for n in range(30):
        assert set(asked_NK[n].tolist()) == set(order_NE[n, r : r + 2].tolist())
        of_asked = logits_NE[n, asked_NK[n]].sigmoid()
        assert torch.allclose(weights_NK[n], of_asked / of_asked.sum())


def test_without_the_best_each_token_asks_among_the_groups_that_are_best_without_them():
    one = router(n_routed_experts=12, n_group=3, topk_group=2)
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
    one = router()
    with moe.without_the_best(one, 6), pytest.raises(ValueError, match="without the best 6 there are fewer than 2 experts"):
        one(torch.randn(3, 32))


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "bais"},
        {"alpha": 0.1},
        {"kind": "bias"},
        {"kind": "bias", "rate": 0.1, "alpha": 0.1},
        {"kind": "batch", "alpha": -1},
    ],
)
def test_balancing_is_one_kind_with_its_own_number(wrong):
    with pytest.raises(ValueError, match=r"kind|needs|takes|negative"):
        Balancing(**wrong)


def test_a_batch_knows_which_mask_goes_with_its_tokens():
    batch = tiny.batch()
    assert batch.mask_of(batch.tokens_BT) is batch.mask_BT
    with pytest.raises(ValueError, match="not a copy"):
        replace(batch, tokens_BT=batch.tokens_BT.clone()).mask_of(batch.tokens_BT)
    assert isinstance(batch, Batch)


@pytest.mark.parametrize(("changes", "left"), [({}, 5), ({"n_routed_experts": 12, "n_group": 3, "topk_group": 2}, 6)])
def test_spare_is_how_many_experts_every_token_can_do_without(changes, left):
    one = tiny.model("moe", **changes)
    assert moe.spare(one) == left
    tokens = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), moe.without_the_best(one, left):
        one(tokens)


def test_the_entropy_of_a_router_is_that_of_its_shares_and_of_the_masked_tokens():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    routing = moe.Routing(torch.nn.Identity(), logits, logits.topk(2).indices)
    mask = torch.tensor([1.0, 0, 1, 1, 0])
    total = 0.0
    for n in (0, 2, 3):
        shares = [float(s) for s in logits[n].sigmoid() / logits[n].sigmoid().sum()]
        total -= sum(s * math.log(s) for s in shares)
    assert float(routing.entropies(mask).mean()) == pytest.approx(total / 3, abs=1e-6)
    even = moe.Routing(torch.nn.Identity(), torch.zeros(2, 7), routing.asked_NK[:2])
    assert even.entropies(torch.ones(2)).tolist() == pytest.approx([math.log(7)] * 2, abs=1e-6)
