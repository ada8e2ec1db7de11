"""GRPO's loss against published numbers and the exact policy gradient of a policy that can be enumerated."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from enumerable import (
    LONGEST,
    Enumeration,
    Given,
    N,
    Tabular,
    close,
    completions,
    everything,
    gradient,
    lengths,
    normal,
    prefix,
    probability,
)
from torch import Tensor

from harness import ops, vllm_engine
from harness.errors import BakeoffError
from harness.parse import validated
from harness.policy import Policy
from methods.grpo import GRPO, Aggregation, GRPOBatch, advantages, surrogate, weights

torch.set_num_threads(1)

AGGREGATIONS = get_args(Aggregation)


def batch_of(
    policy: Policy,
    advantage_B: Tensor,
    reference: Policy | None = None,
    old: Policy | None = None,
    aggregation: Aggregation = "sequence",
) -> GRPOBatch:
    tokens_BT, mask_BT = everything()
    with torch.no_grad():
        return GRPOBatch(
            tokens_BT=tokens_BT,
            mask_BT=mask_BT,
            logp_old_BT=(old or policy).logp(tokens_BT),
            logp_ref_BT=(reference or policy).logp(tokens_BT),
            advantage_B=advantage_B,
            weight_BT=weights(mask_BT.sum(-1), aggregation, LONGEST).double()[:, None] * mask_BT,
        )


def random_advantages(seed: int = 0) -> Tensor:
    return normal(seed, N)


# loss


def one_token(logp: list[float], logp_old: list[float], advantage: list[float]) -> tuple[Given, GRPOBatch]:
    """A sequence of one completion token for each entry."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor([[0.0, v] for v in values], dtype=torch.float64)

    return Given(column(logp)), GRPOBatch(
        tokens_BT=torch.zeros(len(logp), 2, dtype=torch.long),
        mask_BT=column([1] * len(logp)),
        logp_old_BT=column(logp_old),
        logp_ref_BT=column(logp),
        advantage_B=torch.tensor(advantage, dtype=torch.float64),
        weight_BT=column([1] * len(logp)),
    )


def test_the_clipped_loss_is_the_published_one():
    # losses.json clip-1; source: NeMo-RL test_loss_functions
    ratio, advantage = torch.tensor([0.5, 1, 1.5]), torch.tensor([1.0, -1, 2])
    assert close(-surrogate(ratio, advantage, 0.2)[0], [-0.5, 1, -2.4], 1e-6)
    policy, batch = one_token(ratio.log().tolist(), [0, 0, 0], advantage.tolist())
    loss, metrics = GRPO(beta=0, clip=0.2).loss(policy, batch)
    assert loss.item() == pytest.approx(-0.6333333333333333, abs=1e-6)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(1 / 3)


def test_the_plain_loss_is_the_published_one():
    # losses.json reinforce-1; source: NeMo-RL
    policy, batch = one_token([-0.5, -1, -1.5], [-0.5, -1, -1.5], [1, -1, 2])
    assert GRPO(beta=0, surrogate="plain").loss(policy, batch)[0].item() == pytest.approx(0.8333333333333334)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1, False), (1.5, -1, True), (0.5, 1, True), (0.5, -1, False), (1.1, 1, True), (0.9, -1, True)],
)
def test_the_clip_stops_the_gradient_only_where_the_ratio_has_gone_too_far_the_advantages_way(ratio, advantage, moves):
    r = torch.tensor(ratio, requires_grad=True)
    objective, clipped = surrogate(r, torch.tensor(float(advantage)), 0.2)
    objective.backward()
    assert (r.grad != 0) == moves
    assert bool(clipped) != moves


@pytest.mark.parametrize("kind", ["clipped", "plain"])
def test_at_ratio_one_the_gradient_is_the_exact_policy_gradient(kind):
    policy, advantage_B, lengths_B = Tabular(0), random_advantages(), lengths()
    # The loss is a mean over rows: rows that stand for themselves π(y)·B times make it the expectation under π.
    weight_B = probability(policy).detach() * len(lengths_B)
    loss, metrics = GRPO(beta=0, surrogate=kind).loss(policy, batch_of(policy, advantage_B * weight_B))
    expected = gradient(policy, (probability(policy) * advantage_B / lengths_B).sum())
    assert probability(policy).sum().item() == pytest.approx(1)
    assert close(-gradient(policy, loss), expected)
    assert metrics["clip_ratio/region_mean"] == 0


def test_away_from_ratio_one_the_unclipped_gradient_is_still_exact_and_the_plain_one_is_not():
    policy, old, advantage_B = Tabular(0), Tabular(1), random_advantages()
    lengths_B = everything()[1].sum(-1) == 1
    weight_B = probability(old).detach() * len(lengths_B) * lengths_B
    expected = gradient(policy, (probability(policy) * advantage_B * lengths_B).sum())
    batch = batch_of(policy, advantage_B * weight_B, old=old)
    assert close(-gradient(policy, GRPO(beta=0, clip=1e9).loss(policy, batch)[0]), expected)
    assert not close(-gradient(policy, GRPO(beta=0, surrogate="plain").loss(policy, batch)[0]), expected, 1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
def test_at_ratio_one_plain_and_clipped_have_the_same_gradient(beta):
    policy = Tabular(0)
    batch = batch_of(policy, random_advantages(), reference=Tabular(1))
    clipped, plain = (GRPO(beta=beta, surrogate=kind).loss(policy, batch)[0] for kind in ("clipped", "plain"))
    assert close(gradient(policy, clipped), gradient(policy, plain))


def test_the_loss_is_written_out_token_by_token():
    policy, old, reference, advantage_B = Tabular(0), Tabular(1), Tabular(2), random_advantages()
    batch = batch_of(policy, advantage_B, reference, old)
    logp, logp_old, logp_ref = policy.logp(batch.tokens_BT).tolist(), batch.logp_old_BT.tolist(), batch.logp_ref_BT.tolist()
    total = 0.0
    for b, y in enumerate(completions()):
        row = 0.0
        for t in range(1, 1 + len(y)):
            ratio = torch.tensor(logp[b][t] - logp_old[b][t]).exp().item()
            k1 = logp[b][t] - logp_ref[b][t]
            k3 = torch.tensor(-k1).exp().item() + k1 - 1
            a = advantage_B[b].item()
            row += min(ratio * a, max(0.9, min(1.1, ratio)) * a) - 0.3 * k3
        total -= row / len(y)
    loss, metrics = GRPO(beta=0.3, clip=0.1).loss(policy, batch)
    assert loss.item() == pytest.approx(total / len(completions()), rel=1e-6)
    assert metrics["kl"] == pytest.approx(ops.mean(ops.kl(policy.logp(batch.tokens_BT), batch.logp_ref_BT), batch.mask_BT).item())


def test_the_penalty_vanishes_with_its_gradient_where_the_policy_is_its_reference():
    policy = Tabular(0)
    batch = batch_of(policy, random_advantages())
    free, bound = GRPO(beta=0).loss(policy, batch)[0], GRPO(beta=10).loss(policy, batch)[0]
    assert bound.item() == pytest.approx(free.item(), abs=1e-9)
    assert close(gradient(policy, bound), gradient(policy, free))


def test_the_penalty_pulls_towards_the_reference():
    policy, reference = Tabular(0), Tabular(1)
    batch = batch_of(policy, torch.zeros(len(completions()), dtype=torch.float64), reference)
    before, metrics = GRPO(beta=1).loss(policy, batch)
    with torch.no_grad():
        policy.table -= 0.1 * gradient(policy, before)
    assert 0 < GRPO(beta=1).loss(policy, batch)[1]["kl"] < metrics["kl"]
    assert before.item() == pytest.approx(metrics["kl"])


def test_the_expected_gradient_of_k3_is_that_of_the_reverse_divergence():
    # E_{y~π} ∇k3 = E_π[(1 - π_ref/π) ∇log π] = -Σ π_ref ∇log π = ∇KL(π_ref‖π): k3 is unbiased in value, not in gradient.
    generator = torch.Generator().manual_seed(0)
    logits, logits_ref = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    logp, logp_ref = logits.log_softmax(-1), logits_ref.log_softmax(-1)
    sampled = (logp.detach().exp() * ops.kl(logp, logp_ref, "k3")).sum()
    (of_k3,) = torch.autograd.grad(sampled, logits, retain_graph=True)
    (of_reverse,) = torch.autograd.grad((logp_ref.exp() * (logp_ref - logp)).sum(), logits, retain_graph=True)
    (of_forward,) = torch.autograd.grad((logp.exp() * (logp - logp_ref)).sum(), logits)
    assert close(of_k3, of_reverse)
    assert not close(of_k3, of_forward, 1e-3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_micro_batches_weighted_by_their_rows_give_the_loss_metrics_and_gradient_of_the_whole(rows, aggregation):
    policy, method = Tabular(0), GRPO(beta=0.1, clip=0.1)
    batch = batch_of(policy, random_advantages(), Tabular(2), Tabular(1), aggregation)
    loss, metrics = method.loss(policy, batch)
    total, summed = torch.zeros((), dtype=torch.float64), dict.fromkeys(metrics, 0.0)
    for part in torch.randperm(len(batch), generator=torch.Generator().manual_seed(0)).split(rows):
        of_part, metrics_of_part = method.loss(policy, batch[part])
        total = total + of_part * len(part) / len(batch)
        for name, value in metrics_of_part.items():
            summed[name] += value * len(part) / len(batch)
    assert total.item() == pytest.approx(loss.item(), abs=1e-6)
    assert summed == pytest.approx(metrics, abs=1e-6)
    assert close(gradient(policy, total), gradient(policy, loss))


def test_what_another_engine_has_sampled_counts_as_if_the_policy_had():
    # E_μ[w Â] = E_π[Â] over all tokens of one position; where π is more than twice μ, the weight is cut at 2
    pi, mu, advantage = torch.tensor([0.1, 0.3, 0.6]), torch.tensor([0.2, 0.4, 0.4]), torch.tensor([1.0, -2.0, 3.0])
    policy, batch = one_token(pi.log().tolist(), pi.log().tolist(), advantage.tolist())

    def loss(mu: Tensor) -> float:
        w_BT = vllm_engine.weights(batch.logp_old_BT, torch.tensor([[0.0, x] for x in mu.log().tolist()]).double())
        expected_over_mu = replace(batch, weight_BT=w_BT * (mu * len(mu))[:, None] * batch.mask_BT)
        return GRPO(beta=0).loss(policy, expected_over_mu)[0].item()

    assert loss(mu) == pytest.approx(-(pi * advantage).sum().item())
    assert loss(torch.tensor([0.4, 0.4, 0.2])) == pytest.approx(-(0.1 * 1 - 0.3 * 2 + 2 * 0.2 * 3), rel=1e-6)


def test_a_batch_counts_tokens_by_the_weights_of_its_rollouts():
    def batch(weight: float) -> GRPOBatch:
        run = Enumeration(Tabular(0), random_advantages())
        own = run.rollouts
        run.rollouts = lambda problems, group: replace(y := own(problems, group), weight_BT=weight * y.mask_BT)
        return GRPO(prompts=2, group=N, aggregation="token").batch(run)

    in_full, by_half = batch(1.0), batch(0.5)
    assert in_full.weight_BT.max() > 0.5
    assert close(by_half.weight_BT, in_full.weight_BT / 2)
    assert close(by_half.advantage_B, in_full.advantage_B)


def test_tokens_outside_the_mask_do_not_count():
    policy = Tabular(0)
    batch = batch_of(policy, random_advantages(), Tabular(2), Tabular(1))
    loss = GRPO(beta=0.1).loss(policy, batch)[0].item()
    outside_BT = batch.mask_BT == 0
    batch.logp_old_BT[outside_BT] += 1
    batch.logp_ref_BT[outside_BT] -= 1
    assert GRPO(beta=0.1).loss(policy, batch)[0].item() == pytest.approx(loss, abs=1e-12)


def test_the_penaltys_expected_gradient_is_that_of_the_reverse_divergence_of_each_token_where_the_policy_goes():
    policy, reference = Tabular(0), Tabular(1)
    visits_B = probability(policy).detach()
    batch = batch_of(policy, torch.zeros(N, dtype=torch.float64), reference)
    batch.weight_BT = (visits_B * N * lengths())[:, None] * batch.mask_BT  # the expectation under π of the sum over tokens
    of_loss = gradient(policy, GRPO(beta=1).loss(policy, batch)[0])

    def expected(forward: bool) -> Tensor:
        logits_BTV, ref_BTV = policy.logits(batch.tokens_BT), reference.logits(batch.tokens_BT).detach()
        kl_BT = ops.exact_kl(logits_BTV, ref_BTV) if forward else ops.exact_kl(ref_BTV, logits_BTV)
        return gradient(policy, (visits_B[:, None] * kl_BT * batch.mask_BT).sum())

    assert close(of_loss, expected(forward=False))
    assert not close(of_loss, expected(forward=True), 1e-2)


# aggregation


def test_the_aggregations_are_those_of_deepseekmath_dapo_and_dr_grpo():
    policy, old, advantage_B = Tabular(0), Tabular(1), random_advantages()
    batch = batch_of(policy, advantage_B, old=old)
    ratio_BT = (policy.logp(batch.tokens_BT) - batch.logp_old_BT).exp()
    objective_BT = surrogate(ratio_BT, advantage_B[:, None], 0.2)[0] * batch.mask_BT
    expected = {
        "sequence": (objective_BT.sum(-1) / lengths()).mean(),
        "token": objective_BT.sum() / batch.mask_BT.sum(),
        "constant": objective_BT.sum() / (LONGEST * N),
    }
    for aggregation, value in expected.items():
        batch = batch_of(policy, advantage_B, old=old, aggregation=aggregation)
        assert GRPO(beta=0).loss(policy, batch)[0].item() == pytest.approx(-value.item(), rel=1e-6)


def test_over_a_constant_the_gradient_is_that_of_the_expected_reward_whatever_the_lengths():
    policy, reward_B = Tabular(0), random_advantages()
    p_B = probability(policy).detach() * N
    expected = gradient(policy, (probability(policy) * reward_B).sum() / LONGEST)
    for aggregation in ("constant", "sequence"):
        batch = batch_of(policy, reward_B * p_B, aggregation=aggregation)
        of_loss = gradient(policy, GRPO(beta=0).loss(policy, batch)[0])
        assert close(-of_loss, expected, 1e-6 if aggregation == "constant" else 1e-3) == (aggregation == "constant")


@pytest.mark.parametrize(("ratio", "objective"), [(0.5, 0.5), (1.25, 1.25), (1.5, 1.28)])
def test_a_higher_clip_above_leaves_the_one_below_alone(ratio, objective):
    # clip-higher, arXiv:2503.14476 eq. 8
    assert surrogate(torch.tensor(ratio), torch.tensor(1.0), 0.2, 0.28)[0].item() == pytest.approx(objective)
    assert surrogate(torch.tensor(0.5), torch.tensor(-1.0), 0.2, 0.28)[0].item() == pytest.approx(-0.8)
    policy, batch = one_token([torch.tensor(ratio).log().item()], [0], [1])
    assert GRPO(beta=0, clip=0.2, clip_high=0.28).loss(policy, batch)[0].item() == pytest.approx(-objective)


def test_a_batch_has_the_groups_advantages_and_asks_the_reference_only_if_there_is_a_penalty():
    policy, reward_B = Tabular(0), (prefix(everything()[0])[:, -1] % 2).double()
    for beta in (0.0, 0.1):
        run = Enumeration(policy, reward_B, reference=Tabular(1))
        batch = GRPO(prompts=2, group=N, beta=beta, aggregation="constant").batch(run)
        assert run.asked == [(policy, "rollout")]
        assert close(batch.advantage_B, advantages(reward_B.expand(2, N), "std").flatten())
        assert close(batch.weight_BT, (lengths().repeat(2) / LONGEST)[:, None] * batch.mask_BT, 1e-6)
        assert close(batch.logp_old_BT, policy.logp(batch.tokens_BT) * batch.mask_BT)
        logp_ref_BT = run.reference.logp(batch.tokens_BT) * batch.mask_BT
        expected = logp_ref_BT if beta else torch.zeros_like(batch.logp_old_BT)
        assert close(batch.logp_ref_BT, expected)
        assert run.meter.scored_tokens == 2 + (batch.size() if beta else 0)


# options


def test_the_defaults_are_the_papers():
    method = validated(GRPO, {}, "methods.grpo")
    assert (method.lr, method.prompts, method.group, method.beta, method.scale, method.source) == (
        1e-6,
        16,
        64,
        0.04,
        "std",
        "verifier",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group", 1),
        ("group", 2.5),
        ("prompts", 0),
        ("prompts", "many"),
        ("clip", 0),
        ("clip", float("inf")),
        ("clip_high", 0),
        ("beta", -0.1),
        ("beta", float("nan")),
        ("lr", 0),
        ("lr", -1e-3),
        ("lr", float("nan")),
        ("scale", "stdev"),
        ("surrogate", "ppo"),
        ("source", "oracle"),
        ("aggregation", "sequences"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.grpo: {field}: must be "):
        validated(GRPO, {field: value}, "methods.grpo")


def test_a_misspelt_option_is_refused_with_the_one_that_was_meant():
    with pytest.raises(BakeoffError, match=r"methods\.grpo: bta: unknown key \(did you mean 'beta'\?\)"):
        validated(GRPO, {"bta": 0.1}, "methods.grpo")


def test_each_source_of_reward_is_what_it_says():
    run = Enumeration(Tabular(0), reward_B=(torch.arange(N) % 2).double())
    y = run.rollouts(run.problems(1), N)
    assert torch.equal(GRPO(source="verifier").r(run, y), y.reward_B)
    assert torch.equal(GRPO(source="format").r(run, y), y.formed_B)
    assert torch.equal(GRPO(source="trace").r(run, y), y.reward_B * y.trace_B)
    assert 0 < float((y.reward_B * y.trace_B).sum()) < float(y.reward_B.sum())
    coin_B = GRPO(source="random").r(run, y)
    assert set(coin_B.tolist()) == {0.0, 1.0}
    assert torch.equal(coin_B, GRPO(source="random").r(run, y))
