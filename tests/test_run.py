"""What a run leaves on disk, and that nothing but its configuration decides the numbers in it."""

import json
import math
import shutil
import signal
import tomllib
from collections import Counter, defaultdict
from dataclasses import asdict, fields, replace

import pytest
import torch
from conftest import CANARY, GRPO, SFT, SMOKE, bakeoff, config_of, new_root, numbers, open_run, tree
from pydantic import TypeAdapter

from harness import files, worker
from harness.comparison import RunConfig
from harness.meter import Meter
from harness.policy import checksum
from harness.train import train
from reports.health import stopped
from reports.load import load_run

SWEEP = tomllib.loads(SMOKE.read_text())
POINTS, LIMIT = SWEEP["evaluation"]["points"], SWEEP["budget"]["flops"]
ARMS = SWEEP["methods"]
UNTRAINED = ("base", "best_of_n")
METER = {f"budget/{f.name}" for f in fields(Meter) if not f.name.startswith("_")}
EVALUATED = {f"eval/{name}" for name in ("pass@1", "reward", "mean_length", "truncated", "kl", "entropy")}
OF_SOME = ("mean_length_right", "mean_length_wrong", "trace", "mixed", "rechecks")  # means over the completions of a kind

AGAIN = """
question = "Are two arms of another comparison the same runs?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0]
device = "cpu"
"""
BROKEN_METHODS = """
from methods.sft import SFT

class NaN(SFT):
    def batch(self, run):
        self.step = run.step
        return super().batch(run)

    def loss(self, policy, batch):
        loss, metrics = super().loss(policy, batch)
        return loss * (float("nan") if self.step == 2 else 1.0), metrics

class Raises(SFT):
    def batch(self, run):
        raise ZeroDivisionError("no data today")

class Dies(SFT):
    def batch(self, run):
        import os
        os._exit(9)
"""
BROKEN = """
question = "Does one arm's failure leave the others alone?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0]
budget = { steps = 4 }
evaluation = { points = 1, validation_problems = 4, validation_samples = 1, test_problems = 4, ood_problems = 0 }
methods.sft = { method = "sft", lr = 3e-3, prompts = 4 }
methods.nan = { method = "mymethod:NaN", lr = 3e-3, prompts = 4 }
methods.raises = { method = "mymethod:Raises" }
methods.dies = { method = "mymethod:Dies" }
"""


def ids(problems):
    return [p.id for p in problems]


def stream(root, n, seed=0, method="sft", **options):
    config = config_of(root, method=method, seed=seed, label=method, **options)
    return open_run(config, root, root / "runs" / config.id).problems(n)


def test_the_stream_of_problems_depends_on_task_and_seed_alone(root):
    taken = ids(stream(root, 40))
    assert ids(stream(root, 40, method="grpo", lr=0.5, group=8)) == taken
    assert ids(stream(root, 40, seed=1)) != taken
    assert len(set(taken)) > 35


def test_an_epoch_holds_every_problem_once_and_the_next_has_its_own_order(root, tmp_path, monkeypatch):
    (tmp_path / "fewproblems.py").write_text(
        "from dataclasses import replace\nfrom tasks.arithmetic import TASK\n"
        "TEN = replace(TASK, name='ten', problems=lambda split: TASK.problems(split)[:10])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(root, task="fewproblems:TEN")
    run = open_run(config, root, root / "runs" / config.id)
    first, second, third = (ids(run.problems(10)) for _ in range(3))
    assert len(set(first)) == 10
    assert set(first) == set(second) == set(third)
    assert len({tuple(epoch) for epoch in (first, second, third)}) == 3


def test_problems_come_the_same_one_at_a_time_or_many(root):
    config = config_of(root)
    run = open_run(config, root, root / "runs" / config.id)
    assert ids([p for n in (1, 2, 3, 4) for p in run.problems(n)]) == ids(stream(root, 10))


def test_rollouts_do_not_depend_on_what_else_is_in_the_batch_and_are_paid_for(root):
    config = config_of(root)
    run = open_run(config, root, root / "runs" / config.id)
    problems = run.problems(3)
    together = run.rollouts(problems, group=2)
    spent = replace(run.meter)
    alone = run.rollouts(problems[1:2], group=2)
    texts = [
        [run.tokenizer.decode(row[mask.bool()]) for row, mask in zip(y.tokens_BT, y.mask_BT, strict=True)]
        for y in (together, alone)
    ]
    assert texts[0][2:4] == texts[1]
    completions = int(together.mask_BT.sum())
    prompts = sum(len(run.prompt_ids(p)) for p in problems)
    assert (spent.sampled_tokens, spent.scored_tokens, spent.verifier_calls) == (completions, prompts, 6)
    assert spent.flops == run.policy.flops_per_token() * (completions + prompts)
    assert run.meter.sampled_tokens > spent.sampled_tokens


def test_the_worked_solutions_end_in_eos_and_are_masked_to_their_last_token(root):
    config = config_of(root)
    run = open_run(config, root, root / "runs" / config.id)
    problems = run.problems(5)
    batch = run.encode(problems)
    for problem, row, mask in zip(problems, batch.tokens_BT, batch.mask_BT, strict=True):
        assert run.tokenizer.decode(row[mask.bool()]) == problem.solution + run.tokenizer.eos_token
        assert mask.sum() == len(run.ids(problem.solution)) + 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [SFT, GRPO], ids=["sft", "grpo"])
def test_the_same_configuration_gives_the_same_numbers_and_weights_twice(root, options):
    config = config_of(root, steps=3, **options)
    runs = [open_run(config, root, root / name) for name in ("a", "b")]
    torch.rand(7)
    for run in runs:
        train(config.build(), run)
        torch.rand(3)
    assert numbers(root / "a") == numbers(root / "b")
    assert checksum(runs[0].policy) == checksum(runs[1].policy) != checksum(runs[0].reference)
    assert tree(root / "a" / "evals") == tree(root / "b" / "evals")
    other = config_of(root, steps=3, seed=1, **options)
    train(other.build(), open_run(other, root, root / "c"))
    assert numbers(root / "c") != numbers(root / "a")


def test_micro_batches_change_nothing_but_rounding(root):
    rows = []
    for size in (256, 3):
        config = replace(config_of(root, steps=2, lr=3e-3, prompts=8), micro_batch=size)
        train(config.build(), open_run(config, root, root / str(size)))
        rows.append(numbers(root / str(size)))
    for whole, parts in zip(*rows, strict=True):
        assert whole.keys() == parts.keys()
        assert whole["budget/flops"] == parts["budget/flops"]
        if "loss" in whole:
            assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
            assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def test_a_worker_on_a_run_that_is_done_has_nothing_to_do(root):
    config = config_of(root, steps=2, lr=3e-3, prompts=4)
    folder = root / "runs" / config.id
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def work():
        try:
            with pytest.raises(SystemExit) as end:
                worker.main(config, root, "one", False)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return end.value.code, {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "lock"}

    code, first = work()
    assert code == 0
    assert folder / "DONE" in first
    assert work() == (0, first)


def everything(smoke):
    return [(folder, numbers(folder), files.read_json(folder / "config.json")) for folder in smoke.runs.values()]


@pytest.mark.slow
def test_the_smoke_comparison_ends_with_its_leaderboard_and_every_run_done(smoke):
    assert smoke.process.returncode == 0, smoke.process.stderr
    assert "Traceback" not in smoke.process.stderr
    for arm in ARMS:
        assert f"\n{arm} " in smoke.process.stdout
    assert smoke.process.stdout.splitlines()[-1] == f"report: {smoke.root}/comparisons/smoke/report.html"
    assert f"smoke: 0 done, {2 * len(ARMS)} to go" in smoke.process.stderr
    assert f"[{2 * len(ARMS)}/{2 * len(ARMS)}]" in smoke.process.stderr
    assert smoke.runs.keys() == {f"{arm}-s{seed}" for arm in ARMS for seed in (0, 1)}
    for folder in smoke.runs.values():
        assert (folder / "DONE").exists()
        assert not (folder / "FAILED").exists()
        assert not (folder / "checkpoint").exists()
        assert (folder / "model" / "config.json").exists()


@pytest.mark.slow
def test_everything_is_kept_under_the_root_and_nothing_where_the_command_was_typed(smoke):
    assert list(smoke.cwd.iterdir()) == []
    assert {p.name for p in smoke.root.iterdir()} == {"bases", "comparisons", "runs"}
    litter = [p for p in smoke.root.rglob(".*") if "wandb" not in p.parts]
    assert litter == []


@pytest.mark.slow
def test_no_file_holds_a_secret_of_the_environment(smoke):
    assert CANARY not in smoke.process.stdout + smoke.process.stderr
    assert [p for p in smoke.root.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()] == []


@pytest.mark.slow
def test_the_comparison_keeps_what_was_asked_and_its_report(smoke):
    folder = smoke.root / "comparisons" / "smoke"
    asked = (folder / "comparison.toml").read_text()
    assert tomllib.loads(asked) == tomllib.loads(SMOKE.read_text()) | {"device": "cpu", "name": "smoke"}
    assert f"bakeoff run {SMOKE} device=cpu" in asked
    assert set((folder / "runs.txt").read_text().split()) == {p.name for p in smoke.runs.values()}
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_stored_configuration_is_the_run(smoke):
    for folder in smoke.runs.values():
        config = TypeAdapter(RunConfig).validate_python(files.read_json(folder / "config.json"))
        assert config.id == folder.name
        assert json.loads(json.dumps(asdict(config))) == files.read_json(folder / "config.json")


@pytest.mark.slow
def test_the_environment_is_written_down(smoke):
    for folder in smoke.runs.values():
        environment = files.read_json(folder / "environment.json")
        assert environment.keys() >= {
            "git",
            "diff",
            "python",
            "versions",
            "platform",
            "cpu",
            "device",
            "threads",
            "sandbox",
            "argv",
        }
        assert environment["versions"].keys() >= {"bakeoff", "torch", "transformers"}
        assert environment["versions"]["torch"] == torch.__version__
        assert (environment["device"], environment["threads"]) == ("cpu", 1)
        assert environment["cpu"]["cores"] > 0
        assert environment["sandbox"], "the comparison executes programs"


@pytest.mark.slow
def test_every_line_carries_the_meter_and_the_meter_never_runs_back(smoke):
    for folder in smoke.runs.values():
        rows = files.read_jsonl(folder / "metrics.jsonl")
        for row in rows:
            assert row.keys() >= METER | {"step"}
            assert all(math.isfinite(value) for value in row.values())
        for name in METER | {"step"}:
            values = [row[name] for row in rows]
            assert values == sorted(values), name


@pytest.mark.slow
def test_a_run_stops_after_the_batch_that_crosses_its_limit(smoke):
    for folder, rows, config in everything(smoke):
        assert config["budget"]["flops"] == LIMIT
        spent = [row["budget/flops"] for row in rows if "loss" in row]
        if config["method"] in UNTRAINED:
            assert spent == []
            assert {row["step"] for row in rows} == {0}
            continue
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, len(spent) + 1))
        assert spent[-1] >= LIMIT, folder
        steps = config["options"].get("epochs", 1) * config["options"].get("minibatches", 1)
        assert all(before < LIMIT for before in spent[:-steps])
        assert rows[-1]["budget/flops"] == spent[-1], "evaluation is not charged"


def always(row):
    """The names of a row that do not hang on what the completions were."""
    return frozenset(name for name in row if not name.endswith(OF_SOME))


@pytest.mark.slow
def test_every_trained_arm_is_evaluated_as_often_and_every_arm_in_the_same_way(smoke):
    for _, rows, config in everything(smoke):
        points = [row for row in rows if "eval/pass@1" in row]
        prepares = config["label"] == "ppo"  # a share of the budget is gone before its first point
        assert len(points) in ([1] if config["method"] in UNTRAINED else [POINTS, 1 + POINTS] if prepares else [1 + POINTS])
        assert points[0]["step"] == 0
        assert (points[0]["eval/kl"] == 0) == (not config["start"])
        assert points[-1]["step"] == rows[-1]["step"]
        assert {k for k in points[0] if k.startswith("eval/")} >= EVALUATED
        assert len({frozenset(k for k in always(row) if k.startswith("eval/")) for row in points}) == 1
    final = {always(rows[-1]) for _, rows, _ in everything(smoke)}
    assert len(final) == 1
    names = {"test/pass@1", "test/greedy", "ood/pass@1", "other/arithmetic/pass@1", "other/programs/pass@1"}
    assert next(iter(final)) >= names


@pytest.mark.slow
def test_every_arm_answers_the_same_held_out_problems(smoke):
    asked = defaultdict(set)
    for folder, rows, _ in everything(smoke):
        last = rows[-1]["step"]
        for path in folder.glob("evals/*.jsonl"):
            step, split = path.stem.split("-", 1)
            assert split == "validation" or int(step) == last
            lines = files.read_jsonl(path)
            asked[split].add(tuple((line["problem"], line["sample"], line["greedy"], line["expected"]) for line in lines))
    assert asked.keys() == {"validation", "test", "ood", "other-arithmetic", "other-programs"}
    assert {split: len(problems) for split, problems in asked.items()} == dict.fromkeys(asked, 1)
    counts = {split: len(next(iter(problems))) for split, problems in asked.items()}
    assert counts == {"validation": 16, "test": 32 * 2 + 32, "ood": 16, "other-arithmetic": 8, "other-programs": 8}
    splits = {split: {line[0] for line in next(iter(problems))} for split, problems in asked.items()}
    assert not splits["validation"] & splits["test"]


@pytest.mark.slow
def test_the_numbers_of_a_line_follow_from_the_lines_of_its_problems(smoke):
    for folder, rows, _ in everything(smoke):
        points = [(row, "eval", f"{row['step']:06d}-validation") for row in rows if "eval/pass@1" in row]
        points.append((rows[-1], "test", f"{rows[-1]['step']:06d}-test"))
        for row, prefix, name in points:
            lines = files.read_jsonl(folder / "evals" / f"{name}.jsonl")
            sampled = [line for line in lines if not line["greedy"]]
            for column, values in {
                "pass@1": [line["reward"] == 1 for line in sampled],
                "mean_length": [line["length"] for line in sampled],
                "truncated": [line["truncated"] for line in sampled],
            }.items():
                assert row[f"{prefix}/{column}"] == pytest.approx(sum(values) / len(values))
            assert all(line["reason"] for line in lines)


@pytest.mark.slow
def test_arms_that_sample_keep_rollouts_to_look_at(smoke):
    for folder, rows, config in everything(smoke):
        shown = files.read_jsonl(folder / "samples.jsonl")
        if not any("completions/mean_length" in row for row in rows):
            assert shown == []
            continue
        if config["method"] == "ppo":  # several steps a batch: not every tenth step begins one
            assert len(shown) >= 4
            continue
        steps = Counter(row["step"] for row in shown)
        assert steps == dict.fromkeys(range(0, rows[-1]["step"], 10), 4)
        assert shown[0].keys() >= {"step", "problem", "prompt", "completion", "reward", "reason"}
        assert (folder / "samples.jsonl").read_bytes().endswith(b"\n")


@pytest.mark.slow
def test_the_same_command_again_says_that_all_is_done_and_touches_no_run(smoke):
    before = tree(smoke.root / "runs")
    end = bakeoff("run", SMOKE, "device=cpu", "--json", "--root", smoke.root, cwd=smoke.cwd)
    assert end.returncode == 0
    assert end.stderr == f"smoke: {2 * len(ARMS)} done, 0 to go\n"
    assert tree(smoke.root / "runs") == before
    board = json.loads(end.stdout)
    assert {row["arm"] for row in board["leaderboards"][0]["arms"]} == ARMS.keys()
    assert board["report"] == str(smoke.root / "comparisons" / "smoke" / "report.html")


@pytest.fixture(scope="module")
def again(smoke, tmp_path_factory):
    """Two of the smoke comparison's arms afresh, in another root, by one worker and without the mirror."""
    place = tmp_path_factory.mktemp("again")
    root, sweep, text = place / "root", place / "two-arms.toml", SMOKE.read_text()
    tables = {name: text.split(f"[methods.{name}]\n")[1].split("\n\n")[0] for name in ("sft", "grpo-random")}
    evaluation = text[text.index("budget = ") : text.index("[methods.base]")]
    sweep.write_text(AGAIN + evaluation + "".join(f"[methods.{name}]\n{table}\n" for name, table in tables.items()))
    shutil.copytree(smoke.root / "bases", root / "bases")
    folders = [smoke.runs[f"{name}-s0"] for name in tables]
    for folder in folders:
        shutil.copytree(folder, root / "runs" / folder.name)
    locks = {p.name: (root / "runs" / p.name / "lock").stat().st_ino for p in folders}
    end = bakeoff("run", sweep, "--workers", 1, "--no-wandb", "--fresh", "--root", root, cwd=place)
    assert end.returncode == 0, end.stderr
    return root, end, locks


@pytest.mark.slow
def test_afresh_in_another_root_by_one_worker_without_the_mirror_the_numbers_are_the_same(smoke, again):
    root, end, _ = again
    assert "two-arms: 0 done, 2 to go" in end.stderr
    assert {p.name for p in (root / "runs").iterdir()} == {smoke.runs["sft-s0"].name, smoke.runs["grpo-random-s0"].name}
    for folder in (root / "runs").iterdir():
        first = smoke.root / "runs" / folder.name
        assert (first / "wandb").exists()
        assert not (folder / "wandb").exists()
        assert (folder / "metrics.jsonl").read_bytes() != (first / "metrics.jsonl").read_bytes(), "the clock stood still"
        assert numbers(folder) == numbers(first)
        assert tree(folder / "evals") == tree(first / "evals")
        assert (folder / "samples.jsonl").read_bytes() == (first / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_fresh_leaves_the_locks_that_a_worker_of_a_dead_parent_may_still_hold(again):
    root, _, locks = again
    assert {p.name: (p / "lock").stat().st_ino for p in (root / "runs").iterdir()} == locks


@pytest.mark.slow
def test_an_arm_that_fails_is_named_with_its_step_and_the_others_finish(pretrained, tmp_path):
    (tmp_path / "mymethod.py").write_text(BROKEN_METHODS)
    (tmp_path / "broken.toml").write_text(BROKEN)
    root = new_root(pretrained, tmp_path / "root")
    arguments = ("run", tmp_path / "broken.toml", "--no-wandb", "--workers", 2, "--root", root)
    end = bakeoff(*arguments, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert end.returncode == 3
    assert "Traceback" not in end.stderr
    assert "3 runs failed" in end.stderr
    assert "sft" in end.stdout
    folders = {p.name.split("-")[1]: p for p in (root / "runs").iterdir()}
    assert (folders["sft"] / "DONE").exists()
    reasons = {arm: (folders[arm] / "FAILED").read_text() for arm in ("nan", "raises", "dies")}
    assert reasons["nan"] == "TrustError: step 3: the loss is nan; the weights are those before this step\n"
    assert reasons["raises"].startswith("Traceback")
    assert reasons["raises"].endswith("ZeroDivisionError: no data today\n")
    assert "exit code 9" in reasons["dies"]
    for arm, reason in reasons.items():
        assert not (folders[arm] / "DONE").exists()
        assert f"{folders[arm].name}: FAILED: {reason.strip().splitlines()[-1]}" in end.stderr
    assert numbers(folders["nan"])[-1]["step"] == 2
    assert {arm: stopped(load_run(root, folders[arm].name)) for arm in reasons} == {"nan": True, "raises": False, "dies": False}
