"""SFT's loss against sums written out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from enumerable import LONGEST, Enumeration, N, Tabular, close, completions, expected, lengths, minimise, probability
from torch import Tensor, nn

from harness.errors import BakeoffError, TrustError
from harness.method import Batch, padded
from harness.parse import validated
from harness.policy import Policy
from methods.sft import SFT

torch.set_num_threads(1)

VOCABULARY = 5


class Bigram(Policy):
    """π(token | the token before it) from a table."""

    def __init__(self, seed: int):
        super().__init__(nn.Identity())
        table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = nn.Parameter(table)

    wide = False

    def predictions(self, tokens_BT: Tensor, first: int = 1) -> Tensor:
        return self.table[tokens_BT[:, :-1]][:, first - 1 :]


PROMPTS = [[1, 2], [3], [4, 4, 1], [2]]
SOLUTIONS = [[3, 0], [2, 1, 1, 0], [0], [4, 3, 0]]


def batch() -> Batch:
    return padded(PROMPTS, SOLUTIONS, pad=0)


def sft(beta: float = 0.0, reference: Policy | None = None) -> SFT:
    method = SFT(beta=beta)
    if reference is not None:
        method.reference = reference
    return method


def distribution(policy: Bigram, before: int) -> list[float]:
    weights = [math.exp(x) for x in policy.table[before].tolist()]
    return [w / sum(weights) for w in weights]


def by_hand(policy: Bigram, beta: float = 0.0, reference: Bigram | None = None) -> float:
    total = 0.0
    for prompt, solution in zip(PROMPTS, SOLUTIONS, strict=True):
        row = 0.0
        for before, token in zip([prompt[-1], *solution], solution, strict=False):
            p = distribution(policy, before)
            row -= math.log(p[token])
            if reference is not None:
                q = distribution(reference, before)
                row += beta * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        total += row / len(solution)
    return total / len(PROMPTS)


def gradient(policy: Bigram, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, policy.table)[0]


def test_the_loss_is_the_mean_over_solutions_of_the_mean_over_their_tokens():
    policy = Bigram(0)
    loss, metrics = sft().loss(policy, batch())
    assert loss.item() == pytest.approx(by_hand(policy), rel=1e-6)
    assert metrics == {}


def test_the_loss_is_not_the_mean_over_the_tokens_of_the_batch():
    policy, rows = Bigram(0), batch()
    over_tokens = -(policy.logp(rows.tokens_BT) * rows.mask_BT).sum() / rows.mask_BT.sum()
    assert sft().loss(policy, rows)[0].item() != pytest.approx(over_tokens.item(), rel=1e-3)


def test_a_uniform_policy_has_the_loss_of_a_guess_at_every_token():
    policy = Bigram(0)
    with torch.no_grad():
        policy.table.zero_()
    loss, _ = sft().loss(policy, batch())
    assert loss.item() == pytest.approx(math.log(VOCABULARY))


def test_the_loss_does_not_depend_on_the_padding_or_on_how_the_prompt_is_predicted():
    policy = Bigram(0)
    wide = padded(PROMPTS, SOLUTIONS, pad=3)
    wide = Batch(torch.nn.functional.pad(wide.tokens_BT, (0, 4), value=2), torch.nn.functional.pad(wide.mask_BT, (0, 4)))
    assert sft().loss(policy, wide)[0].item() == pytest.approx(sft().loss(policy, batch())[0].item())
    longer = padded([[1, 3, *p] for p in PROMPTS], SOLUTIONS, pad=0)
    assert sft().loss(policy, longer)[0].item() == pytest.approx(by_hand(policy), rel=1e-6)


def test_a_step_down_the_gradient_makes_the_solutions_likelier():
    policy = Bigram(0)
    loss, _ = sft().loss(policy, batch())
    with torch.no_grad():
        policy.table -= 0.1 * gradient(policy, loss)
    assert by_hand(policy) < loss.item()


def test_the_penalty_is_the_exact_divergence_at_the_tokens_of_the_solution():
    policy, reference = Bigram(0), Bigram(1)
    loss, metrics = sft(0.3, reference).loss(policy, batch())
    assert loss.item() == pytest.approx(by_hand(policy, 0.3, reference), rel=1e-6)
    assert metrics["kl"] == pytest.approx((by_hand(policy, 1.0, reference) - by_hand(policy)), rel=1e-5)


def test_the_penalty_is_zero_with_gradient_zero_at_the_start():
    policy = Bigram(0)
    reference = copy.deepcopy(policy).frozen()
    free, _ = sft().loss(policy, batch())
    bound, metrics = sft(10.0, reference).loss(policy, batch())
    assert metrics["kl"] == pytest.approx(0, abs=1e-12)
    assert bound.item() == pytest.approx(free.item(), abs=1e-9)
    assert torch.allclose(gradient(policy, bound), gradient(policy, free), atol=1e-9)


def test_the_penalty_has_a_gradient_elsewhere_and_none_reaches_the_reference():
    policy, reference = Bigram(0), Bigram(1)
    free, bound = sft().loss(policy, batch())[0], sft(0.3, reference).loss(policy, batch())[0]
    assert not torch.allclose(gradient(policy, bound), gradient(policy, free), atol=1e-3)
    sft(0.3, reference).loss(policy, batch())[0].backward()
    assert reference.table.grad is None


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_micro_batches_weighted_by_their_rows_give_the_loss_and_gradient_of_the_whole(rows):
    policy, method = Bigram(0), sft(0.3, Bigram(1))
    loss, metrics = method.loss(policy, batch())
    parts = [(method.loss(policy, batch()[part]), len(part) / len(PROMPTS)) for part in torch.arange(len(PROMPTS)).split(rows)]
    total = torch.stack([of_part * weight for (of_part, _), weight in parts]).sum()
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    assert sum(m["kl"] * weight for (_, m), weight in parts) == pytest.approx(metrics["kl"], rel=1e-6)
    assert torch.allclose(gradient(policy, total), gradient(policy, loss), atol=1e-7)


# completions that the verifier finds right


def right(*of_length: int) -> Tensor:
    """[B] some of the completions of these lengths."""
    return torch.tensor([float(len(y) in of_length and sum(y) % 2 == 0) for y in completions()], dtype=torch.float64)


@pytest.mark.parametrize("source", ["start", "policy"])
def test_a_batch_is_what_is_right_of_the_sources_completions(source):
    right_B = right(1, 2, LONGEST)
    run = Enumeration(Tabular(0), right_B, reference=Tabular(1))
    method = SFT(source=source, prompts=1, group=N)
    method.setup(run)
    kept = method.batch(run)
    sampler, name = (run.reference, "start") if source == "start" else (run.policy, "rollout")
    assert run.asked == [(sampler, name)]
    assert run.logged[f"{source}/right"] == pytest.approx(float(right_B.mean()))
    whole, _ = Enumeration(Tabular(0), right_B)._sample(sampler, [None], N, "")
    assert torch.equal(kept.tokens_BT, whole.tokens_BT[right_B == 1])
    assert torch.equal(kept.mask_BT, whole.mask_BT[right_B == 1])


def test_a_source_that_is_partly_right_or_not_at_all_ends_the_run():
    run = Enumeration(Tabular(0), torch.full((N,), 0.9))
    method = SFT(source="policy", prompts=2, group=N)
    method.setup(run)
    with pytest.raises(TrustError, match=f"policy: none of {2 * N} completions is right, in each of 8 rounds"):
        method.batch(run)


@pytest.mark.parametrize("of_length", [(LONGEST,), (1, 2, LONGEST)])
def test_rejection_leads_to_the_start_given_that_it_is_right(of_length):
    # Each completion counting the same, one of n tokens has 1/n of the pull at each: the fixed point is π_ref(y|right)/|y|,
    # which is π_ref(y|right) where all that is right is equally long.
    reference, policy, right_B = Tabular(1), Tabular(2), right(*of_length)
    run, method = Enumeration(policy, right_B, reference=reference), SFT(source="start", prompts=N)
    method.setup(run)
    kept, weight_B = method.batch(run), probability(reference).detach()[right_B == 1]
    minimise(policy, lambda: expected(method, policy, kept, weight_B / weight_B.sum()))
    conditional_B = probability(reference).detach() * right_B
    tilted_B = conditional_B / lengths()
    assert close(probability(policy), tilted_B / tilted_B.sum(), 1e-4)
    assert close(probability(policy), conditional_B / conditional_B.sum(), 1e-3) == (len(of_length) == 1)


def test_a_policy_that_is_always_right_in_completions_of_one_length_has_nothing_more_to_learn():
    policy, right_B = Tabular(2), right(LONGEST)
    run, method = Enumeration(policy, right_B), SFT(source="policy", prompts=N)
    method.setup(run)
    kept, start_B = method.batch(run), (probability(policy).detach() * right_B)[right_B == 1]
    minimise(policy, lambda: expected(method, policy, kept, start_B / start_B.sum()))
    again_B = probability(policy).detach()[right_B == 1]
    (slope,) = torch.autograd.grad(expected(method, policy, kept, again_B), policy.table)
    assert float(slope.abs().max()) < 1e-4


def test_the_defaults_have_no_penalty():
    method = validated(SFT, {}, "methods.sft")
    assert (method.lr, method.prompts, method.beta) == (1e-5, 64, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompts", 0),
        ("prompts", 1.5),
        ("group", 0),
        ("beta", -1e-9),
        ("beta", float("nan")),
        ("lr", 0),
        ("lr", float("inf")),
        ("lr", "fast"),
        ("source", "teacher"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.sft: {field}: must be "):
        validated(SFT, {field: value}, "methods.sft")


@pytest.mark.parametrize("key", ["reference", "epochs", "data", "learning_rate"])
def test_what_is_not_an_option_is_refused_as_an_unknown_key(key):
    with pytest.raises(BakeoffError, match=rf"methods\.sft: {key}: unknown key"):
        validated(SFT, {key: 1}, "methods.sft")
