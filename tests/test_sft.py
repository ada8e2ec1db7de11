"""SFT's loss against sums written out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from harness.comparison import validated
from harness.errors import BakeoffError
from harness.method import Batch, padded
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

    def logits(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV = self.table[tokens_BT[:, :-1]]
        return torch.cat([torch.zeros_like(logits_BTV[:, :1]), logits_BTV], 1)


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


def test_the_defaults_have_no_penalty():
    method = validated(SFT, {}, "methods.sft")
    assert (method.lr, method.prompts, method.beta) == (1e-5, 64, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompts", 0), ("prompts", 1.5), ("beta", -1e-9), ("beta", float("nan")), ("lr", 0), ("lr", float("inf")), ("lr", "fast")],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.sft: {field}: must be "):
        validated(SFT, {field: value}, "methods.sft")


@pytest.mark.parametrize("key", ["reference", "epochs", "data", "learning_rate"])
def test_what_is_not_an_option_is_refused_as_an_unknown_key(key):
    with pytest.raises(BakeoffError, match=rf"methods\.sft: {key}: unknown key"):
        validated(SFT, {key: 1}, "methods.sft")
