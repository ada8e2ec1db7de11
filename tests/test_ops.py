"""The shared formulas against published numbers, enumeration and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import ops

torch.set_num_threads(1)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_distributions(seed: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1))


def test_the_estimators_give_the_published_numbers():
    # losses.json kl-1; source: NeMo-RL
    logp, logp_ref = rows([-1.0, -1.0, -1.0]), rows([0.0, -15.0, -30.0])
    assert ops.kl(logp, logp_ref, "k1").flatten().tolist() == [-1, 14, 29]
    assert ops.kl(logp, logp_ref, "k2").flatten().tolist() == [0.5, 98, 420.5]
    k3 = [0.7182818284590451, 13.00000083152872, 28.000000000000256]
    assert ops.kl(logp, logp_ref, "k3").flatten().tolist() == pytest.approx(k3, rel=1e-12)


def test_the_default_estimator_is_k3_and_its_scaled_mean_is_the_published_one():
    # losses.json kl-2; source: NeMo-RL
    k3 = ops.kl(rows([0.0, 0.0, 0.0]), rows([-1.0, 0.0, 1.0]))
    assert k3.flatten().tolist() == pytest.approx([0.36787944117144233, 0, 0.7182818284590451], abs=1e-12)
    assert float(0.1 * ops.mean(k3, torch.ones(1, 3))) == pytest.approx(0.03620537565434958)


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed):
    logp, logp_ref = two_distributions(seed)
    exact = float((logp.exp() * (logp - logp_ref)).sum())
    expected = {name: float((logp.exp() * ops.kl(logp, logp_ref, name)).sum()) for name in ("k1", "k2", "k3")}
    assert expected["k1"] == pytest.approx(exact, rel=1e-10)
    assert expected["k3"] == pytest.approx(exact, rel=1e-10)
    assert expected["k2"] != pytest.approx(exact, rel=0.01)


def test_with_policy_and_reference_exchanged_k3_is_biased():
    logp, logp_ref = two_distributions(0)
    exact = float((logp.exp() * (logp - logp_ref)).sum())
    assert float((logp.exp() * ops.kl(logp_ref, logp, "k3")).sum()) != pytest.approx(exact, rel=0.01)


@settings(deadline=None)
@given(st.floats(-50, 0), st.floats(-50, 0))
def test_k1_is_positive_where_the_policy_gives_more_and_k3_is_never_negative(a, b):
    logp, logp_ref = torch.tensor([[a]]), torch.tensor([[b]])
    k1 = logp - logp_ref
    assert torch.sign(ops.kl(logp, logp_ref, "k1")) == torch.sign(k1)
    assert float(ops.kl(logp, logp_ref, "k2")) >= 0
    assert float(ops.kl(logp, logp_ref, "k3")) >= -1e-6


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_an_estimate_has_the_shape_of_its_input_and_is_zero_between_equals(estimator):
    logp = -torch.rand(2, 5)
    assert torch.equal(ops.kl(logp, logp, estimator), torch.zeros(2, 5))


def test_near_the_start_k3_keeps_its_digits_in_float32():
    difference = 1e-3
    k3 = ops.kl(torch.tensor([[-2.0 + difference]]), torch.tensor([[-2.0]]), "k3")
    assert float(k3) == pytest.approx(difference**2 / 2, rel=0.05)


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(ValueError, match=r"k1, k2 or k3, not 'k4'"):
        ops.kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]


@pytest.mark.parametrize(("first", "kl"), [(True, 0.3680642071684971), (False, 0.5108256237659907)])
def test_the_exact_kl_gives_the_published_numbers_in_both_directions(first, kl):
    # losses.json distill-1; source: TRL GKD
    p, q = rows([0.1, 0.9]).log()[None], rows([0.5, 0.5]).log()[None]
    assert float(ops.exact_kl(p, q) if first else ops.exact_kl(q, p)) == pytest.approx(kl)


def test_the_exact_kl_and_the_entropy_are_sums_over_the_vocabulary():
    generator = torch.Generator().manual_seed(0)
    logits, logits_ref = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    kl, entropy = ops.exact_kl(logits, logits_ref), ops.entropy(logits)
    assert kl.shape == entropy.shape == (3, 4)
    for b in range(3):
        for t in range(4):
            p = [math.exp(x) for x in logits[b, t].tolist()]
            q = [math.exp(x) for x in logits_ref[b, t].tolist()]
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            assert float(kl[b, t]) == pytest.approx(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
            assert float(entropy[b, t]) == pytest.approx(-sum(x * math.log(x) for x in p))


def test_the_exact_kl_does_not_see_a_constant_added_to_the_logits():
    logits = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0))
    assert float(ops.exact_kl(logits, logits + 3).abs().max()) < 1e-6


def test_the_exact_kl_is_the_expectation_of_k1_and_of_k3():
    logp, logp_ref = two_distributions(3)
    exact = float(ops.exact_kl(logp[None, None], logp_ref[None, None]))
    for estimator in ("k1", "k3"):
        assert float((logp.exp() * ops.kl(logp, logp_ref, estimator)).sum()) == pytest.approx(exact)


def test_entropy_lies_between_certainty_and_the_uniform_distribution():
    assert float(ops.entropy(torch.zeros(1, 1, 8))) == pytest.approx(math.log(8))
    assert float(ops.entropy(torch.tensor([[[60.0, 0, 0, 0]]]))) == pytest.approx(0, abs=1e-6)


def test_the_mean_of_one_sequence_is_the_published_masked_mean():
    # losses.json masked-1; source: TRL PPO
    assert float(ops.mean(rows([1, 2, 3, 4]), rows([0, 1, 1, 0]))) == 2.5


def test_the_mean_counts_every_sequence_the_same_whatever_its_length():
    x_BT, mask_BT = rows([10, 2, 4, 99], [99, 7, 99, 99]), rows([0, 1, 1, 0], [0, 1, 0, 0])
    assert float(ops.mean(x_BT, mask_BT)) == (3 + 7) / 2


def test_a_sequence_without_a_token_counts_as_zero_and_not_as_nan():
    assert float(ops.mean(rows([1, 2], [3, 4]), rows([0, 0], [1, 1]))) == 3.5 / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_mean_is_exact_over_micro_batches(size, part, seed):
    generator = torch.Generator().manual_seed(seed)
    x_BT = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    mask_BT = (torch.rand(size, 6, generator=generator) < 0.7).double()
    parts = [float(ops.mean(x_BT[r], mask_BT[r])) * len(r) / size for r in torch.arange(size).split(part)]
    assert sum(parts) == pytest.approx(float(ops.mean(x_BT, mask_BT)), abs=1e-12)


def test_whitening_takes_the_published_masked_mean_and_unbiased_variance():
    # losses.json masked-1; source: TRL PPO: mean 2.5, variance 0.5
    out = ops.whiten(rows([1, 2, 3, 4]), rows([0, 1, 1, 0]))
    assert out.flatten().tolist() == pytest.approx([0, -0.5 / math.sqrt(0.5), 0.5 / math.sqrt(0.5), 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 10))
def test_whitened_tokens_have_mean_zero_and_deviation_one_over_the_batch_whatever_the_others_are(seed, shift, scale):
    generator = torch.Generator().manual_seed(seed)
    x_BT, mask_BT = torch.randn(4, 5, generator=generator, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    mask_BT.view(-1)[torch.randperm(20, generator=generator)[:9]] = 1
    out_BT = ops.whiten(x_BT, mask_BT)
    kept_N = out_BT[mask_BT.bool()]
    assert float(kept_N.mean()) == pytest.approx(0, abs=1e-9)
    assert float(kept_N.std()) == pytest.approx(1, rel=1e-6)
    assert float(out_BT[mask_BT == 0].abs().sum()) == 0
    again_BT = ops.whiten(shift + scale * x_BT + 99 * (1 - mask_BT), mask_BT)
    assert torch.allclose(again_BT, out_BT, atol=1e-6)


def test_whitening_what_is_all_equal_gives_zero():
    assert torch.equal(ops.whiten(rows([3, 3, 3, 9]), rows([1, 1, 1, 0])), torch.zeros(1, 4, dtype=torch.float64))


def test_the_last_token_is_the_last_that_the_mask_holds():
    mask_BT = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0.0]])
    assert ops.last_token(mask_BT).tolist() == [[2], [3], [3], [0]]
