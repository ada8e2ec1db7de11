"""Who is asked and what keeps the load even, against loops that say it one token at a time."""

import math

import pytest
import tiny
import torch
from torch import nn

from harness import moe
from harness.moe import Balancing, Routing

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
    r = tiny.router()
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
    r = tiny.router()
    x_ND = torch.randn(400, 32) + torch.randn(32)  # a common direction, which all tokens ask the same experts for

    def violation():
        counts_E = Routing(r, *(r(x_ND)[i] for i in (0, 2))).counts(torch.ones(400))
        moe.adjust(r, counts_E, rate=0.02)
        return float((moe.relative(counts_E[None]) - 1).max())

    seen = [violation() for _ in range(150)]
    assert seen[0] > 0.5
    assert max(seen[-10:]) < 0.25 * seen[0]


# kinds of balancing


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


# entropy


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
