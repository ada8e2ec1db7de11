"""Preferences: what an annotator pairs, and the reward model that Bradley and Terry's likelihood recovers from it."""

from __future__ import annotations

import math

import pytest
import torch
from enumerable import PREFIXES, Enumeration, N, Numbers, Tabular, close, comparisons, everything, minimise, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.errors import TrustError
from harness.method import Rollouts
from methods._preferences import (
    Pairs,
    bradley_terry,
    calibration_error,
    collect,
    final,
    fit_reward_model,
    joined,
    ranked,
    sample_pairs,
)
from methods.ppo import PPO

torch.set_num_threads(1)

RIGHT = (torch.arange(N) % 3 == 0).double()


def rollouts(reward_B: Tensor) -> Rollouts:
    """Completions of one token, which is the row's number; mask and log-probability tell them apart too."""
    number_B = torch.arange(len(reward_B))
    tokens_BT = torch.stack([torch.zeros_like(number_B), number_B], 1)
    ones_B = torch.ones(len(reward_B))
    return Rollouts(tokens_BT, tokens_BT + 0.5, tokens_BT.float(), reward_B, ones_B, ones_B, ones_B, tokens_BT.float())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# pairs


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=30))
def test_pairs_stand_right_beside_wrong_within_a_group_and_none_is_used_twice(group, rewards):
    reward_B = torch.tensor(rewards[: len(rewards) // group * group])
    pairs = ranked(rollouts(reward_B), group, 0.0, generator())
    better, worse = pairs.tokens_BT[:, 1].tolist(), pairs.rejected_BT[:, 1].tolist()
    assert all(reward_B[b] == 1 for b in better)
    assert all(reward_B[w] < 1 for w in worse)
    assert len({*better, *worse}) == 2 * len(pairs)
    assert [b // group for b in better] == [w // group for w in worse]
    right_PG = reward_B.view(-1, group) == 1
    assert len(pairs) == int(torch.minimum(right_PG.sum(-1), (~right_PG).sum(-1)).sum())
    assert close(pairs.mask_BT, pairs.tokens_BT + 0.5)
    assert close(pairs.rejected_mask_BT, pairs.rejected_BT + 0.5)


@pytest.mark.parametrize("reward", [0.0, 0.9, 1.0])
def test_a_set_of_which_all_are_right_or_all_wrong_gives_no_pair(reward):
    pairs = ranked(rollouts(torch.full((8,), reward)), 4, 0.5, generator())
    assert len(pairs) == pairs.size() == 0
    assert len(ranked(rollouts(torch.tensor([1.0, 1, 0, 0])), 2, 0.0, generator())) == 0


def test_an_annotator_who_is_always_wrong_turns_every_pair_round():
    y = rollouts((torch.rand(40, generator=generator(1)) < 0.5).float())
    right, wrong = ranked(y, 8, 0.0, generator()), ranked(y, 8, 1.0, generator())
    assert len(right) == len(wrong) > 10
    assert torch.equal(right.tokens_BT, wrong.rejected_BT)
    assert torch.equal(right.rejected_BT, wrong.tokens_BT)
    assert torch.equal(right.mask_BT, wrong.rejected_mask_BT)
    assert torch.equal(right.rejected_mask_BT, wrong.mask_BT)


@pytest.mark.parametrize("noise", [0.1, 0.25, 0.5])
def test_an_annotator_is_as_often_wrong_as_the_noise_says(noise):
    n = 4000
    pairs = ranked(rollouts(torch.tensor([1.0, 0.0] * n)), 2, noise, generator())
    turned = int((pairs.tokens_BT[:, 1] % 2 == 1).sum())
    assert len(pairs) == n
    assert abs(turned - noise * n) < 4 * math.sqrt(n * noise * (1 - noise))
    assert torch.equal((pairs.tokens_BT[:, 1] - pairs.rejected_BT[:, 1]).abs(), torch.ones(n, dtype=torch.long))


def test_the_same_generator_makes_the_same_mistakes_and_another_position_others():
    y = rollouts(torch.tensor([1.0, 0.0] * 50))
    assert torch.equal(ranked(y, 2, 0.5, generator(3)).tokens_BT, ranked(y, 2, 0.5, generator(3)).tokens_BT)
    run = Enumeration(Tabular(0), RIGHT)
    first, second = (sample_pairs(run, run.reference, 4, N, 0.5) for _ in range(2))
    again = Enumeration(Tabular(0), RIGHT)
    assert torch.equal(first.tokens_BT, sample_pairs(again, again.reference, 4, N, 0.5).tokens_BT)
    assert not torch.equal(first.tokens_BT, second.tokens_BT)


def test_a_pair_is_as_large_as_its_two_completions_and_is_cut_as_one():
    pairs = comparisons(torch.ones(N))
    assert pairs.size() == pairs.chosen().size() + pairs.rejected().size()
    assert pairs[[3]].size() == pairs[[3]].chosen().size() + pairs[[3]].rejected().size()
    assert torch.equal(pairs[[3]].rejected_BT, pairs.rejected_BT[[3]])
    assert torch.equal(pairs.rejected().mask_BT, pairs.rejected_mask_BT)


def test_joined_pairs_are_as_wide_as_the_widest_and_what_is_added_is_masked():
    def of(width: int, fill: int) -> Pairs:
        tokens = torch.full((2, width), fill)
        return Pairs(tokens, tokens * 10, tokens + 1, tokens * 10 + 1)

    whole = joined([of(2, 1), of(4, 5), of(3, 7)])
    assert whole.tokens_BT.tolist() == [[1, 1, 0, 0]] * 2 + [[5] * 4] * 2 + [[7, 7, 7, 0]] * 2
    assert whole.rejected_mask_BT.tolist() == [[11, 11, 0, 0]] * 2 + [[51] * 4] * 2 + [[71, 71, 71, 0]] * 2
    assert whole.size() == sum(of(*part).size() for part in ((2, 1), (4, 5), (3, 7)))


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_sampler_that_is_always_right_or_always_wrong_ends_the_run(reward):
    run = Enumeration(Tabular(0), torch.full((N,), reward))
    with pytest.raises(
        TrustError, match=f"0 preference pairs in 2 sets of {N} completions: all of a set are right, or all wrong"
    ):
        sample_pairs(run, run.reference, 2, N, 0.0)
    assert len(run.asked) == 8


def test_preferences_are_collected_from_the_start_until_their_share_of_the_budget_is_gone():
    tokens = int(everything()[1].sum())
    run = Enumeration(Tabular(0), RIGHT, sampled_tokens=100 * tokens)
    pairs = collect(run, 0.05, 1, N, 0.0)
    assert run.asked == [(run.reference, "preferences")] * 5
    assert run.spent() == pytest.approx(0.05)
    assert len(pairs) == 5 * RIGHT.sum()
    assert len(collect(Enumeration(Tabular(0), RIGHT, sampled_tokens=100 * tokens), 0.0, 1, N, 0.0)) == RIGHT.sum()


def test_a_budget_that_does_not_count_sampling_cannot_be_shared():
    with pytest.raises(TrustError, match="the budget does not count what preferences cost"):
        collect(Enumeration(Tabular(0), RIGHT, steps=10), 0.1, 1, N, 0.0)


# reward model


def test_the_score_of_a_completion_is_that_at_its_last_token():
    x_BT = torch.arange(8.0).view(2, 4)
    assert final(x_BT, torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1.0]])).tolist() == [2, 7]


def test_equal_scores_have_the_loss_of_a_guess():
    loss, metrics = bradley_terry(Numbers(), comparisons(torch.ones(N)))
    assert loss.item() == metrics["loss"] == pytest.approx(math.log(2))


def test_a_difference_of_scores_is_the_log_odds_of_the_ranking():
    model = Numbers(normal(0, PREFIXES))
    pairs = comparisons(torch.ones(N))
    better_B, worse_B = (final(model.after(p.tokens_BT), p.mask_BT) for p in (pairs.chosen(), pairs.rejected()))
    expected = [math.log(1 + math.exp(w - b)) for b, w in zip(better_B.tolist(), worse_B.tolist(), strict=True)]
    assert bradley_terry(model, pairs)[0].item() == pytest.approx(sum(expected) / len(expected))


def test_the_fit_recovers_the_differences_of_the_utilities():
    odds = torch.tensor([1, 2, 5, 1, 4, 1, 3, 2, 1, 3, 1, 2, 1, 1, 2])
    model, pairs = Numbers(), comparisons(odds)
    minimise(model, lambda: bradley_terry(model, pairs)[0])
    tokens_BT, mask_BT = everything()
    score_B = final(model.after(tokens_BT), mask_BT).detach()
    assert close(score_B - score_B.mean(), odds.double().log() - odds.double().log().mean(), 1e-5)


@pytest.mark.parametrize(("sure", "right", "wrong"), [(0.5, 1, 1), (0.75, 3, 1), (0.9, 9, 1)])
def test_one_who_knows_how_often_it_is_right_has_no_calibration_error(sure, right, wrong):
    size = math.log(sure / (1 - sure)) + 1e-6
    assert calibration_error(torch.tensor([size] * right + [-size] * wrong)) == pytest.approx(0, abs=1e-5)


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_how_much_is_in_it():
    of = {sure: math.log(sure / (1 - sure)) for sure in (0.55, 0.65, 0.75, 0.85)}
    margin_B = torch.tensor([of[0.55]] * 4 + [of[0.75]] * 2 + [-of[0.75]] * 2 + [-of[0.85]] * 2)
    assert calibration_error(margin_B) == pytest.approx(0.4 * 0.45 + 0.4 * 0.25 + 0.2 * 0.85)
    opposite = torch.tensor([of[0.85], -of[0.85]])  # right and wrong in one bin: half right, 0.85 sure
    assert calibration_error(opposite) == pytest.approx(0.35)
    assert calibration_error(torch.tensor([of[0.65], -of[0.75]])) == pytest.approx((0.35 + 0.75) / 2)


def test_certainty_is_calibrated_where_it_is_right_and_as_wrong_as_can_be_where_it_is_not():
    assert calibration_error(torch.full((3,), 1e4)) == 0
    assert calibration_error(torch.full((3,), -1e4)) == 1


class Counter(nn.Module):
    """In the place of a Scalar: a linear head over how often each token came so far."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1, dtype=torch.float64)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def after(self, tokens_BT: Tensor) -> Tensor:
        return self.head(nn.functional.one_hot(tokens_BT, 3).double().cumsum(1)).squeeze(-1)

    def flops_per_token(self) -> int:
        return 6


def annotated(n: int) -> Pairs:
    """Pairs of which the one with the more 2s is preferred."""
    pairs = comparisons(torch.ones(N))
    twos_B, others_B = (pairs.tokens_BT == 2).sum(-1), (pairs.rejected_BT == 2).sum(-1)
    return pairs[torch.nonzero(twos_B > others_B).flatten()[:n]]


def test_the_reward_model_ranks_the_held_out_pairs_and_has_mean_0_and_deviation_1_on_them():
    run, model, pairs = Enumeration(Tabular(0)), Counter(), annotated(60)
    pairs = pairs[torch.randperm(60, generator=generator())]
    with torch.no_grad():
        fit_reward_model(run, model, pairs, 0.1, epochs=4, batch=16)
        held_out = pairs[torch.arange(48, 60)]
        better_B, worse_B = (final(model.after(p.tokens_BT), p.mask_BT) for p in (held_out.chosen(), held_out.rejected()))
    score_B = torch.cat([better_B, worse_B])
    assert score_B.mean().item() == pytest.approx(0, abs=1e-9)
    assert score_B.std().item() == pytest.approx(1)
    assert run.logged["reward_model/pairs"] == 60
    assert run.logged["reward_model/accuracy"] == float((better_B > worse_B).double().mean()) == 1
    assert 0 < run.logged["reward_model/loss"] < 0.5
    assert 0 < run.logged["reward_model/calibration_error"] < 0.5
    assert run.meter.trained_tokens == 4 * pairs[torch.arange(48)].size()
    assert run.meter.scored_tokens == held_out.size()
    assert run.meter.flops == 6 * (3 * run.meter.trained_tokens + run.meter.scored_tokens)


def test_the_held_out_pairs_are_not_learned_from():
    pairs, weights = annotated(60), list[Tensor]()
    mirrored = Pairs(pairs.rejected_BT, pairs.rejected_mask_BT, pairs.tokens_BT, pairs.mask_BT)
    for held_out in (pairs, mirrored):
        model, run = Counter(), Enumeration(Tabular(0))
        rows = joined([pairs[torch.arange(48)], held_out[torch.arange(48, 60)]])
        fit_reward_model(run, model, rows, 0.1, epochs=2)
        weights.append(model.head.weight.detach().clone())
        assert run.logged["reward_model/accuracy"] == (held_out is pairs)
    assert close(weights[0], weights[1])


def test_too_few_pairs_for_a_reward_model_end_the_run():
    fit_reward_model(Enumeration(Tabular(0)), Counter(), annotated(16), 0.1, epochs=1)
    with pytest.raises(TrustError, match="15 preference pairs are too few for a reward model"):
        fit_reward_model(Enumeration(Tabular(0)), Counter(), annotated(15), 0.1, epochs=1)


def test_ppo_fits_a_reward_model_to_its_starts_preferences_starts_the_critic_from_it_and_freezes_it():
    run = Enumeration(Tabular(0), RIGHT, sampled_tokens=100 * int(everything()[1].sum()))
    method = PPO(sets=1, group=N, share=0.05, reward_lr=0.1)
    method.critic, method.reward_model = Counter(), Counter()
    method.prepare(run)
    assert run.asked == [(run.reference, "preferences")] * 5
    assert method.reward_model.head.weight.abs().sum() > 0
    assert torch.equal(method.critic.head.weight, method.reward_model.head.weight)
    assert torch.equal(method.critic.head.bias, method.reward_model.head.bias)
    assert method.critic.head.weight.requires_grad
    assert not method.reward_model.head.weight.requires_grad
    assert run.frozen["reward model"][0] is method.reward_model
