"""Distillation's losses against sums written out, Hinton's limits, and the fixed point of each kind of target."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from enumerable import (
    LONGEST,
    VOCABULARY,
    Enumeration,
    N,
    Tabular,
    climb,
    close,
    completions,
    everything,
    expected,
    gradient,
    lengths,
    log_probability,
    minimise,
    probability,
)
from torch import Tensor

from harness import ops
from harness.errors import BakeoffError, TrustError
from harness.method import Batch
from harness.parse import validated
from methods.distill import Distill

torch.set_num_threads(1)


def distill(teacher: Tabular, **options) -> Distill:
    method = Distill(**options)
    method.model = teacher
    return method


def batch() -> Batch:
    return Batch(*everything())


def cross_entropy(policy: Tabular) -> float:
    """The mean over completions of the mean over their tokens."""
    tokens_BT, _ = everything()
    logp = policy.logits(tokens_BT).log_softmax(-1).tolist()
    rows = [-sum(logp[b][1 + t][token] for t, token in enumerate(y)) / len(y) for b, y in enumerate(completions())]
    return sum(rows) / N


def shifted(policy: Tabular) -> Tabular:
    """The same distribution by other logits."""
    other = Tabular(9)
    with torch.no_grad():
        other.table.copy_(policy.table + 3 * other.table[:, :1])
    return other


# losses


@pytest.mark.parametrize(
    "options", [{"targets": "completions"}, {"targets": "soft", "alpha": 0}, {"targets": "soft", "alpha": 0.0, "temperature": 3}]
)
def test_without_a_share_of_soft_targets_the_loss_is_cross_entropy(options):
    policy = Tabular(0)
    loss, _ = distill(Tabular(1), **options).loss(policy, batch())
    assert loss.item() == pytest.approx(cross_entropy(policy))


@pytest.mark.parametrize("t", [1.0, 2.5])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_soft_loss_is_written_out_token_by_token(alpha, t):
    policy, teacher = Tabular(0), Tabular(1)
    tokens_BT, _ = everything()
    of_policy, of_teacher = (m.logits(tokens_BT).tolist() for m in (policy, teacher))

    def softmax(logits: list[float]) -> list[float]:
        weights = [math.exp(x / t) for x in logits]
        return [w / sum(weights) for w in weights]

    kl = 0.0
    for b, y in enumerate(completions()):
        for i in range(1, 1 + len(y)):
            p, q = softmax(of_teacher[b][i]), softmax(of_policy[b][i])
            kl += sum(x * math.log(x / z) for x, z in zip(p, q, strict=True)) / len(y) / N
    loss, metrics = distill(teacher, targets="soft", alpha=alpha, temperature=t).loss(policy, batch())
    assert metrics == pytest.approx({"hard": cross_entropy(policy), "kl_teacher": kl})
    assert loss.item() == pytest.approx((1 - alpha) * cross_entropy(policy) + alpha * t**2 * kl)


def test_the_divergences_of_both_directions_are_the_published_ones():
    # losses.json distill-1; source: TRL GKD
    p, q = Tabular(0), Tabular(0)
    with torch.no_grad():
        p.table[:] = torch.tensor([0.1, 0.9, 0.0]).log()
        q.table[:] = torch.tensor([0.5, 0.5, 0.0]).log()
        for table in (p.table, q.table):
            table[:, 2] = -1e3  # never
    assert distill(p, targets="soft", alpha=1).loss(q, batch())[0].item() == pytest.approx(0.3680642071684971)
    assert distill(q, targets="own").loss(p, batch())[0].item() == pytest.approx(0.3680642071684971)
    assert distill(q, targets="soft", alpha=1).loss(p, batch())[0].item() == pytest.approx(0.5108256237659907)
    assert distill(p, targets="own").loss(q, batch())[0].item() == pytest.approx(0.5108256237659907)


@pytest.mark.parametrize("options", [{"targets": "soft", "alpha": 1, "temperature": t} for t in (1, 3)] + [{"targets": "own"}])
def test_the_gradient_towards_the_teacher_vanishes_where_the_student_is_the_teacher_and_only_there(options):
    teacher = Tabular(1)
    method = distill(teacher, **options)
    for student, same in ((shifted(teacher), True), (Tabular(0), False)):
        loss, metrics = method.loss(student, batch())
        norm = gradient(student, loss).norm().item()
        assert (norm < 1e-12) == (abs(metrics["kl_teacher"]) < 1e-12) == same


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient():
    # Hinton et al., §2.1: where T is far above the logits, T² KL has the gradient of |z - v|²/2V, z and v the centred logits
    student, teacher = Tabular(0), Tabular(1)
    tokens_BT, mask_BT = everything()

    def slope(t: float) -> Tensor:
        return gradient(student, distill(teacher, targets="soft", alpha=1, temperature=t).loss(student, batch())[0])

    z_BTV, v_BTV = (m.logits(tokens_BT) - m.logits(tokens_BT).mean(-1, keepdim=True) for m in (student, teacher))
    limit = gradient(student, ops.mean((z_BTV - v_BTV.detach()).square().sum(-1) / (2 * VOCABULARY), mask_BT))
    assert close(slope(1e4), limit, 1e-4)
    assert slope(1e2).norm().item() == pytest.approx(limit.norm().item(), rel=0.02)
    assert slope(1.0).norm().item() == pytest.approx(limit.norm().item(), rel=0.5)


@pytest.mark.parametrize("targets", ["completions", "soft", "own"])
def test_no_gradient_reaches_the_teacher(targets):
    student, teacher = Tabular(0), Tabular(1)
    distill(teacher, targets=targets).loss(student, batch())[0].backward()
    assert student.table.grad.abs().sum() > 0
    assert teacher.table.grad is None


@pytest.mark.parametrize("targets", ["completions", "soft", "own"])
@pytest.mark.parametrize("rows", [1, 4])
def test_micro_batches_weighted_by_their_rows_give_the_loss_metrics_and_gradient_of_the_whole(targets, rows):
    student, method = Tabular(0), distill(Tabular(1), targets=targets, temperature=2)
    loss, metrics = method.loss(student, batch())
    parts = [(method.loss(student, batch()[part]), len(part) / N) for part in torch.arange(N).split(rows)]
    total = torch.stack([of_part * weight for (of_part, _), weight in parts]).sum()
    assert {k: sum(m[k] * weight for (_, m), weight in parts) for k in metrics} == pytest.approx(metrics, abs=1e-9)
    assert close(gradient(student, total), gradient(student, loss))


# fixed points


def right(*of_length: int) -> Tensor:
    """[B] some of the completions of these lengths."""
    return torch.tensor([float(len(y) in of_length and sum(y) % 2 == 0) for y in completions()], dtype=torch.float64)


@pytest.mark.parametrize("of_length", [(LONGEST,), (1, 2, LONGEST)])
def test_a_teachers_verified_completions_make_the_student_the_teacher_given_that_it_is_right(of_length):
    # Each completion counting the same, one of n tokens has 1/n of the pull at each: the fixed point is π_T(y|right)/|y|,
    # which is π_T(y|right) where all that is right is equally long.
    teacher, student, right_B = Tabular(1), Tabular(2), right(*of_length)
    run = Enumeration(student, right_B)
    method = distill(teacher, prompts=N, targets="completions")
    kept = method.batch(run)
    assert run.asked == [(teacher, "teacher")]
    assert len(kept) == right_B.sum() > 1
    weight_B = probability(teacher).detach()[right_B == 1]
    minimise(student, lambda: expected(method, student, kept, weight_B / weight_B.sum()))
    conditional_B = probability(teacher).detach() * right_B / lengths()
    assert close(probability(student), conditional_B / conditional_B.sum(), 1e-4)
    plain_B = probability(teacher).detach() * right_B
    assert close(probability(student), plain_B / plain_B.sum(), 1e-3) == (len(of_length) == 1)


def test_soft_targets_alone_make_the_student_the_teacher_on_the_solutions_and_hard_ones_the_solutions():
    teacher = Tabular(1)
    for alpha, target_B in (
        (1.0, probability(teacher).detach()),
        (0.0, torch.full((N,), 1 / N, dtype=torch.float64) / lengths()),
    ):
        student = Tabular(2)
        minimise(
            student, lambda student=student, alpha=alpha: distill(teacher, targets="soft", alpha=alpha).loss(student, batch())[0]
        )
        assert close(probability(student), target_B / target_B.sum(), 1e-5)


def test_on_its_own_completions_the_student_minimises_the_reverse_divergence_at_the_teacher():
    teacher, student = Tabular(1), Tabular(2)
    method = distill(teacher, targets="own")
    losses = list[float]()
    for _ in range(40):
        loss = expected(method, student, batch(), probability(student).detach())
        losses.append(loss.item())
        climb(student, -loss, 1.0)
    assert all(after < before for before, after in pairwise(losses[:20]))
    assert close(probability(student), probability(teacher), 1e-5)


def test_what_is_summed_over_its_own_tokens_is_the_divergence_of_the_sequences():
    # Σ_t KL(π(·|s_t)‖π_T(·|s_t)) in expectation over y ~ π, by the chain rule
    teacher, student = Tabular(1), Tabular(0)
    loss = expected(distill(teacher, targets="own"), student, batch(), probability(student).detach() * lengths())
    exact = (probability(student) * (log_probability(student) - log_probability(teacher))).sum()
    assert loss.item() == pytest.approx(exact.item())


# batches


def test_soft_targets_are_the_tasks_solutions_and_own_ones_fresh_completions_both_read_by_the_teacher():
    for targets, asked in (("soft", []), ("own", ["rollout"])):
        run, method = Enumeration(Tabular(0)), distill(Tabular(1), prompts=N, targets=targets)
        rows = method.batch(run)
        assert [name for _, name in run.asked] == asked
        assert all(sampler is run.policy for sampler, _ in run.asked)
        prompts = N if targets == "own" else 0
        assert run.meter.scored_tokens == prompts + rows.size()
        sampled = run.meter.sampled_tokens + prompts
        assert run.meter.flops == (sampled + rows.size()) * method.model.flops_per_token()


def test_a_teacher_that_is_never_right_ends_the_run():
    run = Enumeration(Tabular(0))
    with pytest.raises(TrustError, match=f"teacher: none of {N} completions is right, in each of 8 rounds"):
        distill(Tabular(1), prompts=N, targets="completions").batch(run)
    assert len(run.asked) == 8


def test_the_mean_is_that_of_every_method():
    student, teacher = Tabular(0), Tabular(1)
    tokens_BT, mask_BT = everything()
    kl = ops.mean(ops.exact_kl(student.logits(tokens_BT), teacher.logits(tokens_BT)), mask_BT)
    assert distill(teacher, targets="own").loss(student, batch())[0].item() == pytest.approx(kl.item())


# options


def test_the_defaults_are_the_teachers_completions():
    method = validated(Distill, {}, "methods.distill")
    assert (method.targets, method.teacher, method.alpha, method.temperature) == ("completions", "teacher", 0.5, 1.0)
    assert method.models == ("teacher",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("alpha", float("nan")),
        ("temperature", 0),
        ("temperature", -1),
        ("temperature", float("inf")),
        ("targets", "hard"),
        ("prompts", 0),
        ("group", 0),
        ("lr", 0),
        ("teacher", 3),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(BakeoffError, match=rf"methods\.distill: {field}: must be "):
        validated(Distill, {field: value}, "methods.distill")


@pytest.mark.parametrize("key", ["model", "models", "beta", "T"])
def test_what_is_not_an_option_is_refused_as_an_unknown_key(key):
    with pytest.raises(BakeoffError, match=rf"methods\.distill: {key}: unknown key"):
        validated(Distill, {key: 1}, "methods.distill")
