"""GRPO's advantages against published numbers: what each scale makes of a group's rewards."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from enumerable import close
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.grpo import Scale, advantages, others

torch.set_num_threads(1)

SCALES = get_args(Scale)


def test_the_advantages_of_one_success_in_four_are_the_published_ones():
    # losses.json group-1; source: TRL, verl / minimind / open-instruct, Dr. GRPO
    r_PG = torch.tensor([[1.0, 0, 0, 0]])
    assert close(advantages(r_PG, "std"), [[1.5, -0.5, -0.5, -0.5]], 0.002)
    third = -0.5773502691896258
    assert close(advantages(r_PG, "population-std"), [[1.7320508075688774, third, third, third]], 0.002)
    assert close(advantages(r_PG, "none"), [[0.75, -0.25, -0.25, -0.25]], 1e-7)


def test_the_default_is_the_sample_standard_deviation():
    r_PG = torch.tensor([[1.0, 0, 0, 1]])
    assert torch.equal(advantages(r_PG), advantages(r_PG, "std"))
    assert not close(advantages(r_PG), advantages(r_PG, "population-std"), 0.01)


def test_the_leave_one_out_baseline_and_deviation_are_the_published_ones():
    # losses.json loo-1; source: NeMo-RL
    r_PG = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    baseline_PG, std_PG = others(r_PG)
    assert baseline_PG.tolist() == [[2.5, 2, 1.5], [5.5, 5, 4.5]]
    assert close(std_PG, [[0.7071067811865476, 1.4142135623730951, 0.7071067811865476]] * 2)
    assert close(advantages(r_PG, "leave-one-out"), [[-1.5 / 0.7071067811865476, 0, 1.5 / 0.7071067811865476]] * 2)


def test_where_the_others_agree_the_leave_one_out_advantage_is_not_divided():
    assert close(advantages(torch.tensor([[1.0, 0, 0, 0]]), "leave-one-out")[0, 0], 1.0)


def test_a_group_of_two_left_out_one_at_a_time_is_the_difference():
    assert advantages(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), "leave-one-out").tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])
def test_a_group_without_variance_gives_zero(scale, reward):
    assert torch.equal(advantages(torch.full((2, 64), reward), scale), torch.zeros(2, 64))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", [0.1, 0.7])
def test_a_group_of_equal_rewards_that_float32_cannot_average_gives_zero_too(scale, reward):
    assert float(advantages(torch.full((2, 48), reward), scale).abs().max()) < 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_keep_the_shape_and_depend_on_their_own_group_only(scale):
    r_PG = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    out_PG = advantages(r_PG, scale)
    assert out_PG.shape == (3, 5)
    assert close(out_PG[1:2], advantages(r_PG[1:2], scale), 1e-6)


@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=8), st.integers(-3, 3), st.randoms(use_true_random=False))
def test_advantages_do_not_see_a_constant_and_follow_a_permutation(scale, rewards, shift, rng):
    r_PG = torch.tensor([rewards], dtype=torch.float64)
    order = rng.sample(range(len(rewards)), len(rewards))
    assert close(advantages(r_PG + shift, scale), advantages(r_PG, scale), 1e-6)
    assert close(advantages(r_PG[:, order], scale), advantages(r_PG, scale)[:, order], 1e-6)


@pytest.mark.parametrize(("scale", "times"), [("std", 1), ("population-std", 1), ("none", 10)])
def test_what_is_divided_by_the_deviation_does_not_see_the_unit_of_reward(scale, times):
    r_PG = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert close(advantages(10 * r_PG, scale), times * advantages(r_PG, scale), 1e-4)


@pytest.mark.parametrize(("scale", "deviation", "correction"), [("std", 1, 1), ("population-std", 1, 0)])
def test_standardised_advantages_have_mean_zero_and_deviation_one(scale, deviation, correction):
    out_PG = advantages(torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), scale)
    assert close(out_PG.mean(-1), torch.zeros(4))
    assert close(out_PG.std(-1, correction=correction), torch.full((4,), float(deviation)), 1e-4)


def test_an_unknown_scale_is_refused_by_name():
    with pytest.raises(ValueError, match="'stdev'"):
        advantages(torch.zeros(1, 2), "stdev")  # type: ignore[arg-type]
