"""PPO's advantages against published numbers, the double sum and what lambda means at both ends."""

from __future__ import annotations

import pytest
import torch
from enumerable import close, normal, row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.ppo import gae

torch.set_num_threads(1)


def test_one_step_advantages_are_the_published_ones():
    # losses.json gae-1; source: NeMo-RL
    assert gae(row([0, 0, 5]), row([1, 2, 3]), torch.ones(1, 3), 1, 0).tolist() == [[1, 1, 2]]


def test_advantages_to_the_end_and_their_returns_are_the_published_ones():
    # losses.json gae-2; source: NeMo-RL
    value = row([0.5] * 4)
    advantage = gae(row([0, 0, 0, 1]), value, torch.ones(1, 4), 1, 1)
    assert advantage.tolist() == [[0.5] * 4]
    assert (advantage + value).tolist() == [[1] * 4]


@pytest.mark.parametrize("hidden", [999.0, -1e6])
def test_a_masked_token_in_the_middle_neither_counts_nor_discounts(hidden):
    # losses.json gae-gap; source: NeMo-RL
    advantage = gae(row([0, 0, 0, 0, 1]), row([0.1, 0.2, hidden, 0.4, 0.5]), row([1, 1, 0, 1, 1]), 0.99, 0.95)
    assert close(advantage, [[0.7823247, 0.7276176, 0, 0.56525, 0.5]], 1e-5)


def case(seed: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    mask = (torch.rand(3, width, generator=torch.Generator().manual_seed(seed)) < 0.6).double()
    reward, value = normal(seed, 2, 3, width)
    return reward, value, mask


def double_sum(reward: list[float], value: list[float], mask: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_l (γλ)^l (r_{t+l} + γ V_{t+l+1} - V_{t+l}), on a row without its masked tokens."""
    on, out = [t for t, m in enumerate(mask) if m], [0.0] * len(mask)
    for i in range(len(on)):
        for j in range(i, len(on)):
            following = value[on[j + 1]] if j + 1 < len(on) else 0.0
            out[on[i]] += (gamma * lam) ** (j - i) * (reward[on[j]] + gamma * following - value[on[j]])
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_discounted_sum_of_errors_whatever_the_mask(seed, width, gamma, lam):
    reward, value, mask = case(seed, width)
    expected = [double_sum(*rows, gamma, lam) for rows in zip(reward.tolist(), value.tolist(), mask.tolist(), strict=True)]
    assert close(gae(reward, value, mask, gamma, lam), expected)
    assert close(gae(reward + 99 * (1 - mask), value - 99 * (1 - mask), mask, gamma, lam), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.floats(0, 1))
def test_lambda_one_is_return_less_value_and_lambda_zero_the_error_of_one_step(seed, width, gamma):
    rewards, values, masks = case(seed, width)
    for reward_T, value_T, mask_T in zip(rewards, values, masks, strict=True):
        reward, value = reward_T[mask_T.bool()], value_T[mask_T.bool()]
        if not len(reward):
            continue
        future, ahead = 0.0, list[float]()
        for r in reversed(reward.tolist()):
            future = r + gamma * future
            ahead.insert(0, future)
        following = torch.cat([value[1:], torch.zeros(1)])
        of_row = {lam: gae(reward_T[None], value_T[None], mask_T[None], gamma, lam)[0][mask_T.bool()] for lam in (0.0, 1.0)}
        assert close(of_row[1.0], torch.tensor(ahead) - value, 1e-6)
        assert close(of_row[0.0], reward + gamma * following - value)
