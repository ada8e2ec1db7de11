"""Each check stops a run that breaks what it guards, and lets a sound one pass."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch
from conftest import GRPO, SFT, config_of, numbers, open_run

from harness import checks, files
from harness.errors import RUNS_FAILED, TrustError
from harness.meter import Budget
from harness.policy import checksum
from harness.train import evaluate_if_due, train
from harness.worker import execute
from methods.grpo import GRPO as Grpo
from methods.sft import SFT as Sft


@pytest.fixture
def run(root):
    config = config_of(root)
    return open_run(config, root, root / "runs" / config.id)


def grpo_batch(run):
    return Grpo(prompts=3, group=4).batch(run)


def test_sound_first_batches_pass(run):
    checks.first_batch(run, run.encode(run.problems(8)))
    batch = grpo_batch(run)
    lengths = batch.mask_BT.sum(-1)
    cut = replace(batch, tokens_BT=batch.tokens_BT.masked_fill(batch.tokens_BT == run.tokenizer.eos_token_id, 5))
    checks.first_batch(run, batch)
    assert int(lengths.max()) <= run.task.max_new_tokens
    with pytest.raises(TrustError):
        checks.first_batch(run, cut)


def test_an_empty_loss_mask_is_found(run):
    batch = run.encode(run.problems(4))
    batch.mask_BT[1] = 0
    with pytest.raises(TrustError, match="1 of 4 sequences of the first batch have an empty loss mask"):
        checks.first_batch(run, batch)


def test_eos_left_out_of_the_loss_mask_is_found(run):
    batch = run.encode(run.problems(4))
    for row in (0, 2):
        batch.mask_BT[row, int(batch.mask_BT[row].nonzero().max())] = 0
    with pytest.raises(TrustError, match="leaves out EOS in 2 of 4"):
        checks.first_batch(run, batch)


def test_a_completion_cut_off_at_the_limit_needs_no_eos(run):
    problems = run.problems(2)
    limit = run.task.max_new_tokens
    batch = run.pad([run.prompt_ids(p) for p in problems], [[5] * limit, [5] * limit])
    checks.first_batch(run, batch)
    short = run.pad([run.prompt_ids(p) for p in problems], [[5] * limit, [5] * (limit - 1)])
    with pytest.raises(TrustError, match="leaves out EOS in 1 of 2"):
        checks.first_batch(run, short)


def test_a_sampler_that_disagrees_with_the_trainer_on_one_token_is_found(run):
    batch = grpo_batch(run)
    at = tuple(batch.mask_BT.nonzero()[7].tolist())
    batch.logp_old_BT[at] += 3e-4
    with pytest.raises(TrustError, match=r"the first importance ratio is not 1: sampler and trainer differ by 0\.0003"):
        checks.first_batch(run, batch)
    batch.logp_old_BT[at] = nan
    with pytest.raises(TrustError, match="differ by nan"):
        checks.first_batch(run, batch)


def test_a_policy_that_changed_between_sampling_and_training_is_found(run):
    batch = grpo_batch(run)
    with torch.no_grad():
        next(run.policy.parameters()).mul_(1.01)
    with pytest.raises(TrustError, match="sampler and trainer differ"):
        checks.first_batch(run, batch)


@pytest.mark.parametrize("kl", [1e-3, -1e-3, nan, inf])
def test_a_policy_that_is_not_its_reference_at_the_start_is_found(run, kl):
    checks.start(run, 0.0)
    with pytest.raises(TrustError, match="nats a token, not 0"):
        checks.start(run, kl)


def test_the_first_evaluation_measures_the_distance_to_the_reference(run):
    with torch.no_grad():
        next(run.policy.parameters()).mul_(1.05)
    with pytest.raises(TrustError, match="KL of the untrained policy to its own start"):
        evaluate_if_due(run)


class TouchesReference(Sft):
    def batch(self, run):
        with torch.no_grad():
            next(run.reference.parameters())[0, 0] += 1e-6
        return super().batch(run)


def test_a_method_that_moves_the_reference_ends_in_failure(root):
    config = config_of(root, steps=2)
    folder = root / "runs" / config.id
    with pytest.raises(TrustError, match="the weights of the reference have changed"):
        train(TouchesReference(lr=1e-3, prompts=2), open_run(config, root, folder))
    assert not (folder / "model").exists()


class BreaksAtThree(Sft):
    breaks = "loss"

    def batch(self, run):
        self.step, self.before = run.step, checksum(run.policy)
        return super().batch(run)

    def loss(self, policy, batch):
        loss, metrics = super().loss(policy, batch)
        if self.step == 2:
            nothing = next(policy.parameters()).sum() * 0
            loss = loss * nan if self.breaks == "loss" else loss + nothing.sqrt()
        return loss, metrics


class BreaksGradientAtThree(BreaksAtThree):
    breaks = "gradient"


@pytest.mark.parametrize(
    ("method", "message"),
    [(BreaksAtThree, "step 3: the loss is nan"), (BreaksGradientAtThree, "step 3: the gradient norm is nan")],
)
def test_what_is_not_finite_stops_the_run_before_the_weights_move(root, method, message):
    config = config_of(root)
    folder = root / "runs" / config.id
    run, broken = open_run(config, root, folder), method(lr=1e-3, prompts=2)
    start = checksum(run.policy)
    with pytest.raises(TrustError, match=message):
        train(broken, run)
    assert checksum(run.policy) == broken.before != start
    assert numbers(folder)[-1]["step"] == 2


@pytest.mark.parametrize(("loss", "norm"), [(nan, 1.0), (inf, 1.0), (1.0, nan), (1.0, -inf)])
def test_numbers_that_are_not_finite_are_named_with_their_step(loss, norm):
    checks.finite(1.0, [2.0], 9)
    with pytest.raises(TrustError, match=r"step 9: the (loss|gradient norm) is -?(nan|inf)"):
        checks.finite(loss, [norm], 9)


def test_a_line_that_comes_out_otherwise_after_an_interruption_is_found():
    row = {"step": 4, "loss": 0.5, "budget/seconds": 1.0}
    checks.same_as_recorded(row, {**row, "budget/seconds": 2.0}, ("budget/seconds",))
    for other in ({**row, "loss": 0.5000001}, {"step": 4, "budget/seconds": 1.0}, {**row, "kl": 0.1}):
        with pytest.raises(TrustError, match=r"step 4: .* before the interruption .* --fresh"):
            checks.same_as_recorded(row, other, ("budget/seconds",))


def test_a_quantity_that_was_and_is_not_a_number_is_the_same():
    checks.same_as_recorded({"step": 1, "reward_std": nan}, {"step": 1, "reward_std": nan}, ())
    with pytest.raises(TrustError):
        checks.same_as_recorded({"step": 1, "reward_std": nan}, {"step": 1, "reward_std": 0.0}, ())


def test_a_budget_that_preparation_uses_up_is_an_error_that_says_so(root, tmp_path, monkeypatch):
    (tmp_path / "prepares.py").write_text(
        "from methods.sft import SFT\n\nclass Greedy(SFT):\n    def prepare(self, run):\n"
        "        super().prepare(run)\n        run.meter.train(10**9, run.policy.flops_per_token())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = replace(config_of(root, method="prepares:Greedy"), budget=Budget(flops=1e9))
    folder = root / "runs" / config.id
    assert execute(config, root, folder, "one", False, lambda: False) == RUNS_FAILED
    assert "budget" in (folder / "FAILED").read_text()


@pytest.mark.parametrize("options", [SFT, GRPO], ids=["sft", "grpo"])
def test_a_sound_run_passes_every_check(root, options):
    config = config_of(root, steps=2, **options)
    folder = root / "runs" / config.id
    assert execute(config, root, folder, "one", False, lambda: False) == 0
    assert (folder / "DONE").exists()
    assert files.read_jsonl(folder / "metrics.jsonl")[-1]["step"] == 2
