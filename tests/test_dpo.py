"""DPO's loss against published numbers, and its optimum against the closed form on a policy that can be enumerated."""

from __future__ import annotations

import math

import pytest
import torch
from enumerable import (
    Enumeration,
    N,
    Tabular,
    close,
    comparisons,
    gradient,
    lengths,
    log_probability,
    minimise,
    probability,
)
from torch import Tensor

from harness.errors import BakeoffError
from harness.parse import validated
from harness.policy import Policy
from methods._preferences import Pairs
from methods.dpo import DPO, DPOBatch, preference_loss

torch.set_num_threads(1)

SUM_AND_MEAN = pytest.mark.parametrize("aggregation", ["sum", "mean"])
ODDS = torch.tensor([1, 2, 3, 1, 2, 1, 3, 2, 1, 3, 1, 2, 1, 1, 2])
UTILITY = ODDS.double().log()


def scored(pairs: Pairs, reference: Policy) -> DPOBatch:
    with torch.no_grad():
        return DPOBatch(
            **vars(pairs), logp_ref_BT=reference.logp(pairs.tokens_BT), rejected_ref_BT=reference.logp(pairs.rejected_BT)
        )


class Pair(Policy):
    """A policy that gives these log-probabilities to the chosen tokens, and then these to the rejected ones."""

    def __init__(self, *logp_BT: Tensor):
        super().__init__(torch.nn.Identity())
        self.answers = list(logp_BT)

    def logp(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:  # noqa: ARG002
        answer_BT = self.answers.pop(0)
        assert answer_BT.shape == tokens_BT.shape
        return answer_BT


def spread(total: float, tokens: int) -> Tensor:
    """[1, T] a log-probability of a completion over its tokens, with junk where the prompt is."""
    return torch.tensor([[-77.0] + [total / tokens] * tokens], dtype=torch.float64)


def pair(chosen: float, rejected: float, tokens: int = 1, rejected_tokens: int = 1, **options) -> tuple[float, dict]:
    """The loss of one pair whose reference gives -1 to both completions."""
    n, m = 1 + tokens, 1 + rejected_tokens
    mask, other = torch.ones(1, n, dtype=torch.float64), torch.ones(1, m, dtype=torch.float64)
    mask[0, 0] = other[0, 0] = 0
    tokens_BT, rejected_BT = torch.zeros(1, n, dtype=torch.long), torch.zeros(1, m, dtype=torch.long)
    batch = DPOBatch(tokens_BT, mask, rejected_BT, other, spread(-1, tokens), spread(-1, rejected_tokens))
    loss, metrics = DPO(**options).loss(Pair(spread(chosen, tokens), spread(rejected, rejected_tokens)), batch)
    return loss.item(), metrics


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss"),
    [(0, -5, 0.4740769841801067), (-5, 0, 0.9740769841801067)],
)
def test_the_loss_of_one_pair_is_the_published_one(chosen, rejected, loss):
    # losses.json dpo-1, dpo-2; source: open-instruct
    ratios = torch.tensor([[chosen + 1.0], [rejected + 1.0]], dtype=torch.float64)
    assert preference_loss(*ratios, beta=0.1).item() == pytest.approx(loss, rel=1e-12)
    assert pair(chosen, rejected, beta=0.1)[0] == pytest.approx(loss, rel=1e-12)
    assert pair(chosen, rejected, 3, 5, beta=0.1)[0] == pytest.approx(loss, rel=1e-12)


@SUM_AND_MEAN
def test_where_policy_and_reference_are_equal_the_loss_is_ln_2_whatever_the_pairs(aggregation):
    # losses.json dpo-ln2; source: TRL step 1, NeMo-RL
    policy = Tabular(0)
    loss, metrics = DPO(aggregation=aggregation).loss(policy, scored(comparisons(ODDS), policy))
    assert loss.item() == pytest.approx(0.6931471805599453, abs=1e-12)
    assert DPO.first_loss == pytest.approx(0.6931471805599453, abs=1e-15)
    assert metrics["rewards/margins"] == metrics["rewards/chosen"] == metrics["rewards/rejected"] == 0


def test_the_mean_divides_each_log_ratio_by_its_own_length():
    loss, metrics = pair(2, -4, tokens=3, rejected_tokens=2, beta=0.7, aggregation="mean")
    margin = 0.7 * (3 / 3 - -3 / 2)
    assert metrics["rewards/margins"] == pytest.approx(margin)
    assert loss == pytest.approx(math.log(1 + math.exp(-margin)))
    assert pair(2, -4, 3, 2, beta=0.7)[1]["rewards/margins"] == pytest.approx(0.7 * (3 - -3))


def test_the_metrics_are_the_implicit_rewards_and_what_the_policy_gives():
    _, metrics = pair(2, -4, tokens=3, rejected_tokens=2, beta=0.5)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 1.5,
            "rewards/rejected": -1.5,
            "rewards/margins": 3,
            "rewards/accuracies": 1,
            "logps/chosen": 2,
            "logps/rejected": -4,
        }
    )
    assert pair(-4, 2)[1]["rewards/accuracies"] == 0


@SUM_AND_MEAN
def test_the_gradient_is_beta_times_how_wrong_the_ranking_is(aggregation):
    # eq. 7's gradient: -β E σ(r̂(y⁻) - r̂(y⁺)) [∇log π(y⁺) - ∇log π(y⁻)]
    policy, reference, method = Tabular(0), Tabular(1), DPO(beta=0.3, aggregation=aggregation)
    batch = scored(comparisons(ODDS), reference)

    def each(logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return (logp_BT * mask_BT).sum(-1) / (1 if aggregation == "sum" else mask_BT.sum(-1))

    chosen_B, rejected_B = (
        each(policy.logp(batch.tokens_BT), batch.mask_BT),
        each(policy.logp(batch.rejected_BT), batch.rejected_mask_BT),
    )
    ref_B, rejected_ref_B = each(batch.logp_ref_BT, batch.mask_BT), each(batch.rejected_ref_BT, batch.rejected_mask_BT)
    wrong_B = torch.sigmoid(0.3 * ((rejected_B - rejected_ref_B) - (chosen_B - ref_B))).detach()
    expected = gradient(policy, -0.3 * (wrong_B * (chosen_B - rejected_B)).mean())
    assert close(gradient(policy, method.loss(policy, batch)[0]), expected)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_optimum_is_the_reference_tilted_by_the_utility(beta):
    # Rafailov et al., eq. 4: π_ref exp(r/β)/Z
    reference, policy, method = Tabular(1), Tabular(2), DPO(beta=beta)
    batch = scored(comparisons(ODDS), reference)
    minimise(policy, lambda: method.loss(policy, batch)[0])
    tilted_B = probability(reference).detach() * (UTILITY / beta).exp()
    assert close(probability(policy), tilted_B / tilted_B.sum(), 1e-5)


def test_the_optimum_of_the_mean_form_tilts_by_the_utility_times_the_length():
    # β/|y| log π/π_ref = r + c, with the c for which π sums to 1
    beta, reference, policy = 2.0, Tabular(1), Tabular(2)
    batch, method = scored(comparisons(ODDS), reference), DPO(beta=beta, aggregation="mean")
    minimise(policy, lambda: method.loss(policy, batch)[0])

    def tilted(c: float) -> Tensor:
        return probability(reference).detach() * (lengths() * (UTILITY + c) / beta).exp()

    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if tilted(middle).sum() > 1 else (middle, high)
    assert close(probability(policy), tilted(low), 1e-5)
    plain_B = probability(reference).detach() * (UTILITY / beta).exp()
    assert not close(probability(policy), plain_B / plain_B.sum(), 1e-2)


def test_an_annotator_who_is_half_wrong_teaches_nothing():
    policy = Tabular(0)
    even = comparisons(torch.ones(N))
    assert close(gradient(policy, DPO().loss(policy, scored(even, policy))[0]), torch.zeros_like(policy.table))


@pytest.mark.parametrize("rows", [1, 100, 250])
def test_micro_batches_weighted_by_their_rows_give_the_loss_metrics_and_gradient_of_the_whole(rows):
    policy, method = Tabular(0), DPO(beta=0.5)
    batch = scored(comparisons(ODDS), Tabular(1))[torch.arange(260)]
    loss, metrics = method.loss(policy, batch)
    parts = [(method.loss(policy, batch[part]), len(part) / len(batch)) for part in torch.arange(len(batch)).split(rows)]
    total = torch.stack([of_part * weight for (of_part, _), weight in parts]).sum()
    assert {k: sum(m[k] * weight for (_, m), weight in parts) for k in metrics} == pytest.approx(metrics, abs=1e-6)
    assert close(gradient(policy, total), gradient(policy, loss))


@SUM_AND_MEAN
def test_tokens_outside_the_masks_do_not_count(aggregation):
    policy, method = Tabular(0), DPO(aggregation=aggregation)
    batch = scored(comparisons(ODDS), Tabular(1))
    loss = method.loss(policy, batch)[0].item()
    batch.logp_ref_BT[batch.mask_BT == 0] += 1
    batch.rejected_ref_BT[batch.rejected_mask_BT == 0] -= 1
    assert method.loss(policy, batch)[0].item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("source", ["start", "policy"])
def test_a_batch_is_ranked_pairs_of_the_source_with_what_the_reference_gives_them(source):
    right_B = (torch.arange(N) % 3 == 0).double()
    run = Enumeration(Tabular(0), right_B, reference=Tabular(1))
    method = DPO(prompts=2, group=N, source=source)
    method.setup(run)
    batch = method.batch(run)
    assert run.asked == [(run.reference, "preferences") if source == "start" else (run.policy, "rollout")]
    assert len(batch) == run.logged["preferences/pairs"] == 2 * right_B.sum()
    assert close(batch.logp_ref_BT, run.reference.logp(batch.tokens_BT) * batch.mask_BT)
    assert close(batch.rejected_ref_BT, run.reference.logp(batch.rejected_BT) * batch.rejected_mask_BT)
    chosen, rejected = log_of(batch.tokens_BT, batch.mask_BT), log_of(batch.rejected_BT, batch.rejected_mask_BT)
    right = {round(x, 9) for x, r in zip(log_probability(Tabular(2)).tolist(), right_B.tolist(), strict=True) if r}
    assert chosen <= right
    assert not rejected & right
    assert run.meter.scored_tokens == 2 + batch.size()


def log_of(tokens_BT: Tensor, mask_BT: Tensor) -> set[float]:
    """What tells one completion from another."""
    return {round(x, 9) for x in (Tabular(2).logp(tokens_BT) * mask_BT).sum(-1).tolist()}


# options


def test_the_defaults_are_the_papers():
    method = validated(DPO, {}, "methods.dpo")
    assert (method.beta, method.lr, method.aggregation, method.source, method.noise) == (0.1, 1e-6, "sum", "start", 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group", 1),
        ("group", 2.5),
        ("prompts", 0),
        ("beta", 0),
        ("beta", -0.1),
        ("beta", float("nan")),
        ("noise", -0.1),
        ("noise", 1.1),
        ("noise", float("nan")),
        ("aggregation", "token"),
        ("source", "teacher"),
        ("lr", 0),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.dpo: {field}: must be "):
        validated(DPO, {field: value}, "methods.dpo")


@pytest.mark.parametrize("key", ["reference", "epochs", "label_smoothing"])
def test_what_is_not_an_option_is_refused_as_an_unknown_key(key):
    with pytest.raises(BakeoffError, match=rf"methods\.dpo: {key}: unknown key"):
        validated(DPO, {key: 1}, "methods.dpo")
