"""The arms that are there to be no better than nothing, and what each run records of its loss."""

from __future__ import annotations

import pytest
from conftest import config_of

from harness import files
from harness.comparison import Evaluation
from harness.worker import execute
from reports.leaderboard import is_control
from reports.load import Run

EVALUATION = Evaluation(points=1, validation_problems=4, validation_samples=1, test_problems=16, ood_problems=0)


def trained(root, **options):
    config = config_of(root, evaluation=EVALUATION, **options)
    folder = root / "runs" / config.id
    assert execute(config, root, folder, "one", False, lambda: False) == 0, (folder / "FAILED").read_text()
    return folder


def evaluated(folder):
    (path,) = folder.glob("evals/*-test.jsonl")
    return [row for row in files.read_jsonl(path) if not row["greedy"]]


def test_the_base_again_is_the_base_with_other_random_numbers(root):
    base, again, once_more = (trained(root, method=name, label=label) for name, label in
                              (("base", "base"), ("again", "again"), ("again", "more")))  # fmt: skip
    assert [row["prompt"] for row in evaluated(base)] == [row["prompt"] for row in evaluated(again)]
    assert [row["completion"] for row in evaluated(base)] != [row["completion"] for row in evaluated(again)]
    assert [row["completion"] for row in evaluated(again)] == [row["completion"] for row in evaluated(once_more)]
    last = files.read_jsonl(again / "metrics.jsonl")[-1]
    assert (last["budget/flops"], last["test/kl"]) == (0, 0)


def test_a_policy_that_is_its_own_teacher_has_nothing_to_learn(root):
    folder = trained(root, method="distill", targets="soft", alpha=1.0, teacher="smoke", lr=1e-3, prompts=8)
    losses = [row["loss"] for row in files.read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert abs(losses[0]) < 1e-6


@pytest.mark.parametrize(
    ("label", "method", "options", "control"),
    [
        ("grpo-format", "grpo", {"source": "format"}, True),
        ("x", "grpo", {"source": "random"}, True),
        ("again", "again", {}, True),
        ("self-teacher", "distill", {}, True),
        ("dpo-shuffled", "dpo", {}, True),
        ("grpo-trace", "grpo", {"source": "trace"}, False),
        ("base", "base", {}, False),
    ],
)
def test_the_report_knows_which_arms_are_controls(tmp_path, label, method, options, control):
    run = Run("r", tmp_path, "done", label=label, method=method, config={"options": options})
    assert is_control(run) is control


def test_a_run_records_the_gradient_coefficient_of_its_first_batch(root):
    found = files.read_json(trained(root, method="sft", lr=1e-3, prompts=8) / "paradigm.json")
    assert found["over"] == "tokens"
    assert found["mean"] == pytest.approx(1, abs=1e-3)
    assert found["error"] < 1e-3


def test_evaluations_say_what_reasoning_there_is_and_what_it_is_worth(root):
    folder = trained(root, method="sft", lr=1e-3, prompts=8)
    last, rows = files.read_jsonl(folder / "metrics.jsonl")[-1], evaluated(folder)
    thoughts = [row for row in rows if row["trace"] is not None]
    assert last["test/thinks"] == pytest.approx(len(thoughts) / len(rows))
    if thoughts:
        assert last["test/trace"] == pytest.approx(sum(row["trace"] for row in thoughts) / len(thoughts))
    wrong = [row["length"] for row in rows if row["reward"] != 1.0]
    assert last["test/mean_length_wrong"] == pytest.approx(sum(wrong) / len(wrong))
