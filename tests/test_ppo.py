"""PPO's gradient, reward and losses against published numbers, sums written out and a policy that can be enumerated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from enumerable import (
    EOS,
    PREFIXES,
    Enumeration,
    Given,
    N,
    Numbers,
    Tabular,
    climb,
    close,
    completions,
    divergence,
    everything,
    gradient,
    lengths,
    log_probability,
    normal,
    probability,
    row,
    visits,
)
from torch import Tensor

from harness import ops
from harness.errors import BakeoffError
from harness.parse import validated
from harness.policy import Policy, checksum
from methods.ppo import PPO, PPOBatch, explained, gae

torch.set_num_threads(1)

KINDS = ("clipped", "unclipped", "plain")


def ppo(policy: Tabular, critic: Numbers | None = None, reward_model: Numbers | None = None, **options) -> PPO:
    method = PPO(prompts=N, **{"source": "verifier"} | options)
    method.reference, method.critic, method.reward_model = policy, critic or Numbers(), reward_model or Numbers()
    return method


def utilities(seed: int = 3) -> Tensor:
    return normal(seed, N).sigmoid()


def exact_critic(policy: Policy, reward_B: Tensor) -> Numbers:
    """V(s) = E[r | s]."""
    return Numbers(visits(policy, reward_B) / visits(policy).clamp(min=1e-30))


def in_expectation(batch: PPOBatch, policy: Policy) -> PPOBatch:
    """The same batch with Â not whitened, weighted so that its mean is the expectation under π of the sum over tokens."""
    weight_B = probability(policy).detach() * N * lengths()
    return replace(batch, advantage_BT=(batch.return_BT - batch.value_old_BT) * weight_B[:, None])


# the exact gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_exact_critic_the_gradient_is_that_of_the_expected_reward_whatever_lambda(kind, lam):
    policy, reward_B = Tabular(0), utilities()
    once = {"epochs": 1, "minibatches": 1}
    method = ppo(policy, exact_critic(policy, reward_B), beta=0, lam=lam, surrogate=kind, **once)
    batch = in_expectation(method.batch(Enumeration(policy, reward_B)), policy)
    loss, metrics = method.loss(policy, batch)
    assert close(-gradient(policy, loss), gradient(policy, (probability(policy) * reward_B).sum()))
    assert metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize(("lam", "exact"), [(1.0, True), (0.5, False), (0.0, False)])
def test_with_a_wrong_critic_the_gradient_is_exact_at_lambda_one_only(lam, exact):
    policy, reward_B = Tabular(0), utilities()
    method = ppo(policy, Numbers(normal(5, PREFIXES)), beta=0, lam=lam)
    loss = method.loss(policy, in_expectation(method.batch(Enumeration(policy, reward_B)), policy))[0]
    expected = gradient(policy, (probability(policy) * reward_B).sum())
    assert close(-gradient(policy, loss), expected, 1e-9 if exact else 1e-3) == exact


def test_with_the_penalty_the_gradient_is_that_of_expected_reward_less_divergence():
    policy, reference, reward_B = Tabular(0), Tabular(1), utilities()
    method = ppo(reference, beta=0.3, lam=1)
    loss = method.loss(policy, in_expectation(method.batch(Enumeration(policy, reward_B)), policy))[0]
    objective = (probability(policy) * reward_B).sum() - 0.3 * divergence(policy, reference)
    assert close(-gradient(policy, loss), gradient(policy, objective))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_following_the_gradient_leads_to_the_reference_tilted_by_the_reward(beta):
    # the maximiser of E[r] - β KL(π‖π_ref) is π_ref exp(r/β)/Z
    reference, policy, reward_B = Tabular(1), Tabular(1), utilities()
    tilted_B = probability(reference).detach() * (reward_B / beta).exp()
    tilted_B /= tilted_B.sum()
    assert not close(probability(policy), tilted_B, 0.02)
    method, run = ppo(reference, beta=beta, lam=1), Enumeration(policy, reward_B)
    for _ in range(40):
        climb(policy, -method.loss(policy, in_expectation(method.batch(run), policy))[0], 0.5 / beta)
    assert close(probability(policy), tilted_B, 1e-6)


# reward


def test_the_penalty_summed_over_a_completion_is_in_expectation_the_divergence_of_the_sequences():
    policy, reference = Tabular(0), Tabular(1)
    batch = ppo(reference, beta=0.3, lam=1).batch(Enumeration(policy))
    total_B = batch.return_BT[:, 1]  # what is still to come when the first token is chosen
    assert close(total_B, -0.3 * (log_probability(policy) - log_probability(reference)))
    assert (probability(policy) @ total_B).item() == pytest.approx(-0.3 * divergence(policy, reference).item())


def test_the_reward_comes_with_the_last_token_and_the_penalty_with_its_own():
    policy, reference, reward_B = Tabular(0), Tabular(1), utilities()
    batch = ppo(reference, beta=0.3, lam=0).batch(Enumeration(policy, reward_B))
    k1_BT = policy.logp(batch.tokens_BT) - reference.logp(batch.tokens_BT)
    for b, y in enumerate(completions()):
        expected = [0.0, *(-0.3 * k1_BT[b, 1 : 1 + len(y)]).tolist()]
        expected[-1] += reward_B[b].item()
        assert batch.return_BT[b, : 1 + len(y)].tolist() == pytest.approx(expected)
        assert batch.return_BT[b, 1 + len(y) :].abs().sum() == 0


def test_a_reward_model_reads_the_whole_completion_and_one_that_was_cut_off_gets_minus_one():
    policy, reward_model = Tabular(0), Numbers(normal(7, PREFIXES))
    run = Enumeration(policy, utilities())
    batch = ppo(policy, reward_model=reward_model, source="learned", beta=0, lam=1).batch(run)
    values_BT = reward_model.after(batch.tokens_BT)
    read_B = torch.stack([values_BT[b, len(y)] for b, y in enumerate(completions())])
    expected_B = torch.where(torch.tensor([y[-1] == EOS for y in completions()]), read_B, -1.0)
    assert 0 < (expected_B == -1).sum() < N
    assert close(batch.return_BT[:, 1], expected_B)
    assert run.logged["reward_model/reward"] == pytest.approx(read_B.mean().item())


def test_a_batch_holds_whitened_advantages_the_values_of_states_and_returns_that_are_not_whitened():
    policy, critic, reward_B = Tabular(0), Numbers(normal(5, PREFIXES)), utilities()
    run = Enumeration(policy, reward_B, reference=Tabular(1))
    batch = ppo(run.reference, critic, beta=0.1, lam=0.9, gamma=0.8).batch(run)
    assert run.asked == [(policy, "rollout")]
    k1_BT = (batch.logp_old_BT - run.reference.logp(batch.tokens_BT)) * batch.mask_BT
    reward_BT = -0.1 * k1_BT
    reward_BT[torch.arange(N), lengths().long()] += reward_B
    value_BT = critic.before(batch.tokens_BT).detach() * batch.mask_BT
    advantage_BT = gae(reward_BT, value_BT, batch.mask_BT, 0.8, 0.9)
    assert close(batch.value_old_BT, value_BT)
    assert close(batch.return_BT, advantage_BT + value_BT)
    assert close(batch.advantage_BT, ops.whiten(advantage_BT, batch.mask_BT))
    assert run.logged["kl"] == pytest.approx(ops.mean(k1_BT, batch.mask_BT).item())
    assert run.logged["explained_variance"] == pytest.approx(explained(value_BT, batch.return_BT, batch.mask_BT))
    assert run.meter.scored_tokens == N + 2 * batch.size()  # prompts, reference, critic


def test_what_another_engine_has_sampled_counts_by_its_weight_for_the_policy_and_in_full_for_the_critic():
    def batch(weight: float) -> PPOBatch:
        run = Enumeration(Tabular(0), utilities(), reference=Tabular(1))
        own = run.rollouts
        run.rollouts = lambda problems: replace(y := own(problems), weight_BT=weight * y.mask_BT)
        return ppo(run.reference, Numbers(normal(5, PREFIXES))).batch(run)

    in_full, by_half = batch(1.0), batch(0.5)
    assert in_full.advantage_BT.abs().max() > 0.1
    assert close(by_half.advantage_BT, in_full.advantage_BT / 2)
    assert close(by_half.return_BT, in_full.return_BT)


def test_the_explained_variance_is_one_of_a_perfect_critic_and_zero_of_one_that_knows_the_mean():
    returns, mask = row([1, 2, 4, 99]), row([1, 1, 1, 0])
    assert explained(returns + row([0, 0, 0, 5]), returns, mask) == 1
    assert explained(row([3, 3, 3, 0]), returns, mask) == 0
    assert explained(2 * returns, returns, mask) == 0
    assert explained(returns, row([1, 1, 1, 2]), mask) == 0


# loss


def random_batch(policy: Policy, critic: Numbers, seed: int = 11) -> PPOBatch:
    """Nothing at its own value: ratios, values and returns all differ."""
    tokens_BT, mask_BT = everything()
    apart, values, advantages, returns = 0.4 * normal(seed, 4, *mask_BT.shape)
    with torch.no_grad():
        logp_BT, value_BT = policy.logp(tokens_BT) + apart, critic.before(tokens_BT) + values
    return PPOBatch(tokens_BT, mask_BT, logp_BT, value_BT, advantages, value_BT + returns)


def columns(logp: list[float], logp_old: list[float], advantage: list[float]) -> tuple[Given, PPOBatch]:
    """A sequence of one completion token for each entry."""
    first, rest = torch.zeros(len(logp), 1, dtype=torch.float64), torch.tensor([logp, logp_old, advantage], dtype=torch.float64)
    logp_BT, old_BT, advantage_BT = (torch.cat([first, column[:, None]], 1) for column in rest)
    mask_BT, zero_BT = torch.cat([first, torch.ones_like(first)], 1), torch.zeros_like(logp_BT)
    return Given(logp_BT), PPOBatch(torch.zeros(len(logp), 2, dtype=torch.long), mask_BT, old_BT, zero_BT, advantage_BT, zero_BT)


def test_the_clipped_loss_is_the_published_one():
    # losses.json clip-1; source: NeMo-RL test_loss_functions
    policy, batch = columns(torch.tensor([0.5, 1, 1.5]).log().tolist(), [0, 0, 0], [1, -1, 2])
    loss, metrics = ppo(Tabular(0), clip=0.2).loss(policy, batch)
    assert loss.item() == pytest.approx(-0.6333333333333333, abs=1e-6)
    assert metrics == pytest.approx({"policy_loss": loss.item(), "value_loss": 0, "clip_ratio/region_mean": 1 / 3})
    of_rows = [ppo(Tabular(0), clip=0.2).loss(policy_of_row(policy, b), batch[[b]])[0].item() for b in range(3)]
    assert of_rows == pytest.approx([-0.5, 1, -2.4], abs=1e-6)


def policy_of_row(policy: Given, b: int) -> Given:
    return Given(policy.logp_BT.detach()[[b]])


def test_the_plain_loss_is_the_published_one():
    # losses.json reinforce-1; source: NeMo-RL
    policy, batch = columns([-0.5, -1, -1.5], [-0.5, -1, -1.5], [1, -1, 2])
    loss = ppo(Tabular(0), surrogate="plain", epochs=1, minibatches=1).loss(policy, batch)[0]
    assert loss.item() == pytest.approx(0.8333333333333334)


def test_the_unclipped_loss_follows_the_ratio_as_far_as_it_goes():
    policy, batch = columns(torch.tensor([0.5, 1, 1.5]).log().tolist(), [0, 0, 0], [1, -1, 2])
    assert ppo(Tabular(0), surrogate="unclipped").loss(policy, batch)[0].item() == pytest.approx(-(0.5 - 1 + 3) / 3, abs=1e-6)


def test_the_loss_is_written_out_token_by_token():
    policy, critic = Tabular(0), Numbers(normal(5, PREFIXES))
    batch = random_batch(policy, critic)
    logp, value = policy.logp(batch.tokens_BT).tolist(), critic.before(batch.tokens_BT).tolist()
    of_policy = of_value = clipped = 0.0
    for b, y in enumerate(completions()):
        for t in range(1, 1 + len(y)):
            ratio = torch.tensor(logp[b][t] - batch.logp_old_BT[b, t].item(), dtype=torch.float64).exp().item()
            a, v_old, r = (x[b, t].item() for x in (batch.advantage_BT, batch.value_old_BT, batch.return_BT))
            near = max(0.8, min(1.2, ratio))
            of_policy -= min(ratio * a, near * a) / len(y) / N
            clipped += (near * a < ratio * a) / len(y) / N
            v, v_near = value[b][t], max(v_old - 0.2, min(v_old + 0.2, value[b][t]))
            of_value += max((v - r) ** 2, (v_near - r) ** 2) / 2 / len(y) / N
    loss, metrics = ppo(policy, critic, clip=0.2).loss(policy, batch)
    assert loss.item() == pytest.approx(of_policy + of_value)
    expected = {"policy_loss": of_policy, "value_loss": of_value, "clip_ratio/region_mean": clipped}
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert 0 < clipped < 1


@pytest.mark.parametrize(
    ("value", "returned", "loss", "moves"),
    [
        (0.1, 1.0, 0.9**2, True),  # within ε of the old value, 0
        (0.5, 1.0, 0.8**2, False),  # further than ε, towards the return: the clipped error is the larger and is constant
        (0.5, -1.0, 1.5**2, True),  # further than ε, away from the return
        (3.0, 1.0, 2.0**2, True),  # far past the return
        (-0.5, -1.0, 0.8**2, False),
        (-0.5, 1.0, 1.5**2, True),
    ],
)
def test_the_value_loss_is_the_larger_of_two_and_is_flat_where_the_clipped_one_is(value, returned, loss, moves):
    critic = Numbers(torch.full((PREFIXES,), value, dtype=torch.float64))
    policy, batch = columns([0], [0], [0])
    batch = replace(batch, return_BT=batch.return_BT + returned)
    total, metrics = ppo(Tabular(0), critic, clip=0.2).loss(policy, batch)
    total.backward()
    assert metrics["value_loss"] == pytest.approx(loss / 2)
    assert bool(critic.table.grad.abs().sum() > 0) == moves


def test_the_policy_moves_the_critic_nowhere_and_the_critic_the_policy():
    policy, critic = Tabular(0), Numbers(normal(5, PREFIXES))
    batch, method = random_batch(policy, critic), ppo(policy, critic)
    both = torch.autograd.grad(method.loss(policy, batch)[0], [policy.table, critic.table])
    other = replace(batch, return_BT=batch.return_BT + 1, value_old_BT=batch.value_old_BT - 1)
    of_policy = torch.autograd.grad(method.loss(policy, other)[0], [policy.table, critic.table])
    assert torch.equal(both[0], of_policy[0])
    assert not close(both[1], of_policy[1], 1e-3)
    other = replace(batch, advantage_BT=2 * batch.advantage_BT)
    of_critic = torch.autograd.grad(method.loss(policy, other)[0], [policy.table, critic.table])
    assert torch.equal(both[1], of_critic[1])
    assert not close(both[0], of_critic[0], 1e-3)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_micro_batches_weighted_by_their_rows_give_the_loss_metrics_and_gradient_of_the_whole(rows):
    policy, critic = Tabular(0), Numbers(normal(5, PREFIXES))
    batch, method = random_batch(policy, critic), ppo(policy, critic)
    loss, metrics = method.loss(policy, batch)
    parts = [(method.loss(policy, batch[part]), len(part) / N) for part in torch.arange(N).split(rows)]
    total = torch.stack([of_part * weight for (of_part, _), weight in parts]).sum()
    assert {k: sum(m[k] * weight for (_, m), weight in parts) for k in metrics} == pytest.approx(metrics, abs=1e-6)
    assert close(gradient(policy, total), gradient(policy, loss))


def test_tokens_outside_the_mask_do_not_count():
    policy, critic = Tabular(0), Numbers(normal(5, PREFIXES))
    batch, method = random_batch(policy, critic), ppo(policy, critic)
    loss = method.loss(policy, batch)[0].item()
    for name in ("logp_old_BT", "value_old_BT", "advantage_BT", "return_BT"):
        getattr(batch, name)[batch.mask_BT == 0] += 1
    assert method.loss(policy, batch)[0].item() == pytest.approx(loss, abs=1e-12)


# what is trained


def set_up(llama: Policy, **options) -> tuple[PPO, Enumeration]:
    method, run = PPO(**options), Enumeration(llama)
    method.setup(run)
    return method, run


def test_policy_and_critic_are_trained_each_at_its_own_rate_and_the_reward_model_is_not(llama):
    method, _ = set_up(llama, lr=1e-3, critic_lr=1e-2)
    groups = method.optimizer(llama).param_groups
    assert [group["lr"] for group in groups] == [1e-3, 1e-2]
    assert [{id(p) for p in group["params"]} for group in groups] == [
        {id(p) for p in llama.parameters()},
        {id(p) for p in method.critic.parameters()},
    ]
    assert [group["weight_decay"] for group in groups] == [0, 0]
    assert method.flops_per_token(llama) == llama.flops_per_token() + method.critic.flops_per_token()
    assert method.passes() == (4, 4)


def test_with_the_verifier_nothing_is_prepared_and_no_reward_model_is_held(llama):
    method, run = set_up(llama, source="verifier")
    method.prepare(run)
    assert run.asked == []
    assert run.meter.flops == 0
    assert not hasattr(method, "reward_model")
    torch.nn.init.normal_(method.critic.head.weight)
    again, other = set_up(llama, source="verifier")
    again.restore(other, method.state())
    assert checksum(again.critic) == checksum(method.critic)
    assert set(other.frozen) == set(run.frozen)


def test_a_checkpoint_holds_critic_and_reward_model_and_the_latter_stays_frozen(llama):
    method, _ = set_up(llama)
    torch.nn.init.normal_(method.critic.head.weight)
    torch.nn.init.constant_(method.reward_model.head.bias, 3.0)
    again, other = set_up(llama)
    again.restore(other, method.state())
    for name in ("critic", "reward_model"):
        assert checksum(getattr(again, name)) == checksum(getattr(method, name))
    assert other.frozen["reward model"] == (again.reward_model, checksum(again.reward_model))
    assert not any(p.requires_grad for p in again.reward_model.parameters())
    assert all(p.requires_grad for p in again.critic.parameters())


# options


def test_the_defaults_are_a_learned_reward_and_several_epochs():
    method = validated(PPO, {}, "methods.ppo")
    assert (method.source, method.surrogate, method.epochs, method.minibatches) == ("learned", "clipped", 4, 4)
    assert (method.clip, method.beta, method.gamma, method.lam, method.share) == (0.2, 0.05, 1.0, 0.95, 0.2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lam", -0.1),
        ("lam", 1.1),
        ("lam", float("nan")),
        ("gamma", -0.1),
        ("gamma", 1.1),
        ("share", 1.5),
        ("noise", -0.1),
        ("noise", 1.1),
        ("group", 1),
        ("sets", 0),
        ("prompts", 0),
        ("epochs", 0),
        ("minibatches", 0),
        ("reward_epochs", 0),
        ("clip", 0),
        ("beta", -1),
        ("lr", 0),
        ("critic_lr", 0),
        ("critic_lr", float("inf")),
        ("reward_lr", -1),
        ("surrogate", "reinforce"),
        ("source", "oracle"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.ppo: {field}: must be "):
        validated(PPO, {field: value}, "methods.ppo")


@pytest.mark.parametrize(("epochs", "minibatches"), [(4, 4), (2, 1), (1, 2)])
def test_the_plain_gradient_is_refused_with_more_than_one_step_a_batch(epochs, minibatches):
    message = r'methods\.ppo: surrogate = "plain" is .* needs epochs = 1 and minibatches = 1$'
    with pytest.raises(BakeoffError, match=message):
        validated(PPO, {"surrogate": "plain", "epochs": epochs, "minibatches": minibatches}, "methods.ppo")
    assert validated(PPO, {"surrogate": "plain", "epochs": 1, "minibatches": 1}, "methods.ppo").passes() == (1, 1)


@pytest.mark.parametrize("key", ["critic", "reward_model", "reference", "K"])
def test_what_is_not_an_option_is_refused_as_an_unknown_key(key):
    with pytest.raises(BakeoffError, match=rf"methods\.ppo: {key}: unknown key"):
        validated(PPO, {key: 1}, "methods.ppo")
