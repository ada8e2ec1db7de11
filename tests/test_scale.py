"""Slices of the run matrix, and what a dry run says that it will take."""

import json
import time
from dataclasses import asdict, replace

import pytest
from conftest import METHODS, SMOKE, bakeoff, new_root, numbers

from harness import files
from harness.capacity import FLOPS_PER_SECOND, capacity, measured, spread
from harness.comparison import Comparison
from harness.errors import USAGE, BakeoffError
from harness.meter import Budget
from harness.shard import Shard

SWEEP = """
question = "Do slices make the whole?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0, 1]
budget = { steps = 2 }
device = "cpu"
evaluation = { points = 1, validation_problems = 4, validation_samples = 1, test_problems = 4, ood_problems = 0 }
methods.base = { method = "base" }
methods.sft = { method = "sft", lr = 3e-3, prompts = 4 }
methods.more = { method = "sft", lr = 3e-3, prompts = 4, start = "sft" }
"""


@pytest.fixture
def asked(tmp_path):
    return Comparison.load(SMOKE).runs(tmp_path)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_slices_are_disjoint_and_together_the_matrix(asked, n):
    slices = [Shard(i, n).of_runs(asked) for i in range(n)]
    assert sorted(run.id for part in slices for run in part) == sorted(run.id for run in asked)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_run_is_in_the_slice_of_the_run_that_it_starts_from_and_after_it(asked, n):
    followers = [run for run in asked if run.start]
    assert followers
    for part in (Shard(i, n).of_runs(asked) for i in range(n)):
        ids = [run.id for run in part]
        assert all(run.start in ids[: ids.index(run.id)] for run in part if run.start)


def test_slices_are_of_one_size_but_for_the_runs_that_follow_others(asked):
    sizes = [sum(not run.start for run in Shard(i, 5).of_runs(asked)) for i in range(5)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["4/4", "1/0", "1", "a/b", "-1/2", "1/2/3", ""])
def test_what_is_no_slice_is_refused_by_name(text):
    with pytest.raises(BakeoffError, match=f"--shard {text}"):
        Shard.read(text)


def test_a_dry_run_shows_the_slice_alone_and_writes_nothing(cli, tmp_path):
    parts = list[str]()
    for i in range(3):
        code, out, _ = cli("run", SMOKE, "--dry-run", "--json", "--shard", f"{i}/3", "--root", tmp_path / "root")
        assert code == 0
        parts += [row["run"] for row in json.loads(out)["runs"]]
    whole = json.loads(cli("run", SMOKE, "--dry-run", "--json", "--root", tmp_path / "root")[1])["runs"]
    assert sorted(parts) == sorted(row["run"] for row in whole)
    assert cli("run", SMOKE, "--dry-run", "--shard", "3/3", "--root", tmp_path / "root")[0] == USAGE
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_a_url_is_refused_in_a_line(cli):
    code, out, err = cli("run", SMOKE, "--dry-run", "--root", "s3://bucket/runs")
    assert (code, out, err.count("\n")) == (USAGE, "", 1)
    assert "s3:/bucket/runs" in err


@pytest.mark.scale
def test_three_hundred_runs_are_planned_in_less_than_two_seconds(cli, tmp_path):
    cli("run", SMOKE, "--dry-run", "--root", tmp_path)  # what is imported once
    seeds = list(range(11))
    started = time.process_time()
    code, out, _ = cli("run", SMOKE, f"seeds={seeds}", 'models=["dense", "mla"]', "--dry-run", "--json", "--root", tmp_path)
    assert time.process_time() - started < 2
    assert code == 0
    assert len(json.loads(out)["runs"]) == 14 * len(seeds) * 2 > 300


def finished(root, run, score, flops=1e9, seconds=10.0, eval_seconds=2.0):
    """A finished run of these numbers."""
    folder = root / "runs" / run.id
    files.write_json(folder / "config.json", asdict(run))
    tokens = {"budget/sampled_tokens": 100, "budget/scored_tokens": 200, "budget/trained_tokens": 300}
    clock = {"budget/flops": flops, "budget/seconds": seconds, "budget/eval_seconds": eval_seconds}
    files.write(folder / "metrics.jsonl", files.jsonl([{"step": 8, "test/pass@1": score, **tokens, **clock}]))
    files.write(folder / "DONE", "")


def small(**changes):
    return Comparison(
        name="small",
        question="?",
        methods={"sft": METHODS["sft"], "grpo": METHODS["grpo"]},
        tasks=("knights",),
        models=("smoke",),
        seeds=(0, 1, 2),
        budget=Budget(flops=1e9),
        device="cpu",
        **changes,
    )


def test_without_a_measured_run_a_budget_is_asked_for_in_full_at_the_stated_speed(tmp_path):
    comparison = small()
    runs = comparison.runs(tmp_path)
    asked = capacity(comparison, runs, measured(tmp_path))
    assert (asked.runs, asked.measured, asked.flops) == (6, 0, 6e9)
    assert asked.hours > 6e9 / FLOPS_PER_SECOND / 3600
    steps = replace(comparison, budget=Budget(steps=5))
    assert capacity(steps, steps.runs(tmp_path), []).hours is None


def test_a_run_costs_what_finished_ones_of_its_method_and_model_did_scaled_to_its_budget(tmp_path):
    comparison = small()
    for run in comparison.runs(tmp_path):
        finished(tmp_path, run, 0.5)
    larger = replace(comparison, budget=Budget(flops=4e9))
    asked = capacity(larger, larger.runs(tmp_path), measured(tmp_path))
    assert (asked.measured, asked.flops, asked.tokens) == (6, 6 * 4e9, 6 * 4 * 600)
    assert asked.hours == pytest.approx(6 * (4 * 10 + 2) / 3600)
    longer = replace(comparison, budget=Budget(steps=16))
    assert capacity(longer, longer.runs(tmp_path), measured(tmp_path)).flops == 6 * 2e9


def test_the_spread_is_that_of_measured_pairs_of_arms_or_of_decoding_alone(tmp_path):
    runs = small().runs(tmp_path)
    deviation, pairs = spread(runs[0], measured(tmp_path))
    assert pairs == 0
    assert deviation == pytest.approx((2 * 0.25 / (500 * 4)) ** 0.5)
    for run, score in zip(runs, [0.5, 0.6, 0.7, 0.1, 0.3, 0.5], strict=True):
        finished(tmp_path, run, score)
    deviation, pairs = spread(runs[0], measured(tmp_path))
    assert pairs == 1
    assert deviation == pytest.approx(0.1)  # of .4, .3 and .2
    other = replace(small(), evaluation=replace(small().evaluation, test_problems=100)).runs(tmp_path)[0]
    assert spread(other, measured(tmp_path))[1] == 0


@pytest.mark.scale
def test_slices_that_run_apart_leave_the_files_and_the_numbers_of_one_command(pretrained, tmp_path):
    whole, sliced = (new_root(pretrained, tmp_path / name) for name in ("whole", "sliced"))
    for root in (whole, sliced):
        (root / "small.toml").write_text(SWEEP)
    assert bakeoff("run", "small.toml", "--no-wandb", cwd=whole).returncode == 0
    first = bakeoff("run", "small.toml", "--no-wandb", "--shard", "0/2", cwd=sliced)
    assert first.returncode == 0, first.stderr
    assert "3 of 6 runs" in first.stderr
    assert len(list((sliced / "runs").glob("*/DONE"))) == 3
    assert bakeoff("run", "small.toml", "--no-wandb", "--shard", "1/2", cwd=sliced).returncode == 0
    for name in ("runs.txt", "comparison.toml"):
        assert (whole / "comparisons/small" / name).read_bytes() == (sliced / "comparisons/small" / name).read_bytes()
    for folder in (whole / "runs").iterdir():
        assert numbers(sliced / "runs" / folder.name) == numbers(folder)
