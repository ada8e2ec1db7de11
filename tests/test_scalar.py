"""A scalar on a policy: what it sees, what it costs, and that it shares no weight."""

from __future__ import annotations

import pytest
import torch
from enumerable import close

from harness.policy import Policy, Scalar, checksum

torch.set_num_threads(1)


def critic_of(policy: Policy) -> Scalar:
    critic = Scalar(policy)
    torch.nn.init.normal_(critic.head.weight)
    return critic


SEQUENCE = torch.tensor([[3, 1, 4, 1, 5, 2]])


def test_a_scalar_starts_at_zero_everywhere(llama):
    assert torch.equal(Scalar(llama).after(SEQUENCE), torch.zeros(1, 6))
    assert torch.equal(Scalar(llama).before(SEQUENCE), torch.zeros(1, 6))


@pytest.mark.parametrize("t", range(1, 6))
def test_before_a_token_neither_it_nor_what_follows_is_seen_and_after_it_only_what_follows_is_not(llama, t):
    critic = critic_of(llama)
    with torch.no_grad():
        before_T, after_T = critic.before(SEQUENCE)[0], critic.after(SEQUENCE)[0]
        changed = SEQUENCE.clone()
        changed[0, t] = 6
        before, after = critic.before(changed)[0], critic.after(changed)[0]
    assert close(before[: t + 1], before_T[: t + 1], 1e-6)
    assert close(after[:t], after_T[:t], 1e-6)
    assert (after[t:] - after_T[t:]).abs().min() > 1e-5
    assert t == 5 or (before[t + 1 :] - before_T[t + 1 :]).abs().min() > 1e-5


def test_before_a_token_is_after_the_one_before_it(llama):
    critic = critic_of(llama)
    assert critic.before(SEQUENCE)[0, 0] == 0
    assert close(critic.before(SEQUENCE)[:, 1:], critic.after(SEQUENCE)[:, :-1], 1e-6)


def test_a_scalar_costs_two_flops_for_every_weight_but_the_embeddings(llama):
    names = {name: p.numel() for name, p in Scalar(llama).named_parameters()}
    embedding = 7 * 8
    assert Scalar(llama).flops_per_token() == 2 * (sum(names.values()) - embedding) > 0
    assert llama.flops_per_token() - Scalar(llama).flops_per_token() == 2 * (7 * 8 - (8 + 1))  # the two heads


def test_a_scalar_shares_no_weight_with_the_policy_it_was_made_of_and_can_be_trained(llama):
    frozen = Policy(llama.model).frozen()
    critic = critic_of(frozen)
    before = checksum(frozen)
    critic.after(SEQUENCE).sum().backward()
    with torch.no_grad():
        for p in critic.parameters():
            assert p.requires_grad
            assert p.grad is not None
            p.add_(1)
    assert checksum(frozen) == before
    frozen.requires_grad_(True)
