"""A run that was stopped, anywhere and by anything, ends with the numbers of one that was not."""

import fcntl
import os
import shutil
import signal
import time
from itertools import pairwise
from random import Random

import pytest
import torch
from conftest import GRPO, METHODS, SFT, bakeoff, config_of, new_root, numbers, open_run, start, tree, until

from harness import files
from harness import train as loop
from harness.errors import INTERRUPTED, RUNS_FAILED, TrustError
from harness.meter import Budget, Meter
from harness.policy import checksum
from harness.run import sha256
from harness.train import CHECKPOINT_EVERY, Interrupted, train
from harness.worker import execute
from methods.grpo import GRPO as Grpo

pytestmark = pytest.mark.slow

STEPS = 8
BUDGETS = {"ppo": 2e10, "dpo": 2e10, "dpo-online": 2e10}  # FLOPs of runs with many completions a step
SWEEP = """
question = "Does an interruption change a number?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0]
budget = { flops = 1.4e10 }
device = "cpu"
evaluation = { points = 4, validation_problems = 8, validation_samples = 1, test_problems = 8, test_samples = 1 }
methods.sft = { method = "sft", lr = 3e-3, prompts = 1 }
methods.grpo = { method = "grpo", lr = 1e-3, prompts = 4, group = 2, beta = 0.02, source = "random" }
"""


def after(calls):
    """A stop that is asked for at the given call."""
    left = [calls]

    def stop():
        left[0] -= 1
        return left[0] < 0

    return stop


def begin(config, root, folder, stop=lambda: False):
    run = open_run(config, root, folder)
    try:
        train(config.build(), run, stop)
    except Interrupted:
        return run, True
    return run, False


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory):
    """A run of each method that nothing stopped, and one of SFT that was stopped half way."""
    root = new_root(pretrained, tmp_path_factory.mktemp("undisturbed"))
    whole = {}
    for name, options in (("sft", SFT), ("grpo", GRPO)):
        config = config_of(root, steps=STEPS, **options)
        folder = root / name
        whole[name] = (config, folder, checksum(begin(config, root, folder)[0].policy))
    run, stopped = begin(whole["sft"][0], root, root / "half", after(STEPS // 2))
    assert stopped
    assert run.step == STEPS // 2
    return root, whole


@pytest.mark.parametrize(("method", "stops"), [("sft", [0, 1, 4, 2]), ("sft", [7, 0, 0]), ("grpo", [0, 3, 2])])
def test_a_run_stopped_at_any_step_continues_to_the_same_numbers_and_weights(undisturbed, tmp_path, method, stops):
    root, whole = undisturbed
    config, reference, weights = whole[method]
    recorded = b""
    for stop in stops:
        _, interrupted = begin(config, root, tmp_path / "run", after(stop))
        assert interrupted
        assert (tmp_path / "run" / "checkpoint").exists()
        lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        assert lines.startswith(recorded)
        recorded = lines
    run, interrupted = begin(config, root, tmp_path / "run")
    assert not interrupted
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().startswith(recorded)
    assert numbers(tmp_path / "run") == numbers(reference)
    assert checksum(run.policy) == weights
    assert tree(tmp_path / "run" / "evals") == tree(reference / "evals")
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_killed_at_any_moment_continues_to_the_same_numbers_and_weights(pretrained, tmp_path, monkeypatch, name):
    """Killed before the first gradient, in a step after a checkpoint, and soon after it was continued."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)
    root = new_root(pretrained, tmp_path)
    config = config_of(root, budget=Budget(flops=BUDGETS.get(name, 6e9), steps=12), **METHODS[name])
    whole = checksum(begin(config, root, root / "whole")[0].policy)
    assert numbers(root / "whole")[-1]["step"] >= 6, "too short a run to be interrupted in"
    for moment in (0, 4, 1):
        with monkeypatch.context() as m:
            m.setattr(Meter, "train", dying_at(moment, Meter.train))
            with pytest.raises(Killed):
                begin(config, root, root / "run")
    run, _ = begin(config, root, root / "run")
    assert numbers(root / "run") == numbers(root / "whole")
    assert checksum(run.policy) == whole
    assert tree(root / "run" / "evals") == tree(root / "whole" / "evals")


def dying_at(moment, train):
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > moment:
            raise Killed
        return train(*arguments)

    return dying


class Killed(BaseException):
    pass


class KilledAt(Grpo):
    """Dies between sampling and training of one step."""

    def batch(self, run):
        self.step = run.step
        return super().batch(run)

    def loss(self, policy, batch):
        if self.step == self.dies_at:
            raise Killed
        return super().loss(policy, batch)


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_run_killed_inside_a_step_repeats_from_its_checkpoint_and_alters_no_line(undisturbed, tmp_path, monkeypatch, step):
    root, whole = undisturbed
    config, reference, weights = whole["grpo"]
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    dying = KilledAt(**config.options)
    dying.dies_at = step
    with pytest.raises(Killed):
        train(dying, open_run(config, root, tmp_path / "run"))
    recorded = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert files.read_json(tmp_path / "run" / "checkpoint" / "state.json")["step"] == step // 2 * 2
    assert len(numbers(tmp_path / "run")) > step
    run, _ = begin(config, root, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().startswith(recorded)
    assert numbers(tmp_path / "run") == numbers(reference)
    assert checksum(run.policy) == weights


@pytest.mark.parametrize("step", [0, 1])
def test_a_rollout_shown_before_a_kill_is_not_shown_twice(undisturbed, tmp_path, step):
    root, whole = undisturbed
    config, reference, _ = whole["grpo"]
    dying = KilledAt(**config.options)
    dying.dies_at = step
    with pytest.raises(Killed):
        train(dying, open_run(config, root, tmp_path / "run"))
    begin(config, root, tmp_path / "run")
    assert files.read_jsonl(tmp_path / "run" / "samples.jsonl") == files.read_jsonl(reference / "samples.jsonl")


def half(undisturbed, folder):
    root, whole = undisturbed
    shutil.copytree(root / "half", folder)
    return root, *whole["sft"], folder / "checkpoint"


def alter_state(checkpoint, change):
    state = files.read_json(checkpoint / "state.json")
    change(state)
    files.write_json(checkpoint / "state.json", state)


def without_moments(checkpoint):
    state = torch.load(checkpoint / "training.pt", weights_only=True)
    torch.save({**state, "optimizer": {**state["optimizer"], "state": {}}}, checkpoint / "training.pt")


def with_the_weights_of_the_start(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "policy.safetensors")
    save_file({k: v * 1.001 for k, v in weights.items()}, checkpoint / "policy.safetensors")


LOST = {
    "nothing": lambda _: None,
    "position": lambda checkpoint: alter_state(checkpoint, lambda s: s.update(position=0)),
    "step": lambda checkpoint: alter_state(checkpoint, lambda s: s.update(step=s["step"] - 1)),
    "points": lambda checkpoint: alter_state(checkpoint, lambda s: s.update(points=-1)),
    "line": lambda checkpoint: alter_state(checkpoint, lambda s: s.update(line=s["line"] - 1)),
    "meter": lambda checkpoint: alter_state(checkpoint, lambda s: s["meter"].update(trained_tokens=0)),
    "optimizer": without_moments,
    "weights": with_the_weights_of_the_start,
}


@pytest.mark.parametrize("lost", LOST)
def test_without_any_one_part_of_the_saved_state_the_numbers_are_others(undisturbed, tmp_path, lost):
    root, config, reference, _, checkpoint = half(undisturbed, tmp_path / "run")
    LOST[lost](checkpoint)
    files.write_json(checkpoint / "manifest.json", {p.name: sha256(p) for p in checkpoint.iterdir() if p.name != "manifest.json"})
    try:
        begin(config, root, tmp_path / "run")
        same = numbers(tmp_path / "run") == numbers(reference)
    except TrustError:
        same = False
    assert same == (lost == "nothing")


@pytest.mark.parametrize("part", ["position", "line", "meter", "points", "step"])
def test_a_checkpoint_that_lacks_a_part_of_its_state_is_refused(undisturbed, tmp_path, part):
    root, config, _, _, checkpoint = half(undisturbed, tmp_path / "run")
    alter_state(checkpoint, lambda s: s.pop(part))
    files.write_json(checkpoint / "manifest.json", {p.name: sha256(p) for p in checkpoint.iterdir() if p.name != "manifest.json"})
    assert execute(config, root, tmp_path / "run", "one", False, lambda: False) == RUNS_FAILED
    assert not (tmp_path / "run" / "DONE").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"flipped": flip, "truncated": lambda p: p.write_bytes(p.read_bytes()[:-10]), "deleted": lambda p: p.unlink()}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["training.pt", "policy.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_fails_the_run_with_the_file_and_the_way_out(undisturbed, tmp_path, name, damage):
    root, config, _, _, checkpoint = half(undisturbed, tmp_path / "run")
    DAMAGE[damage](checkpoint / name)
    before = tree(tmp_path / "run")
    assert execute(config, root, tmp_path / "run", "one", False, lambda: False) == RUNS_FAILED
    reason = (tmp_path / "run" / "FAILED").read_text()
    assert reason.count("\n") == 1, reason
    assert str(checkpoint) in reason
    assert "--fresh" in reason
    if name != "manifest.json":
        assert name in reason
    left = tree(tmp_path / "run")
    assert {k: left[k] for k in before if k != "environment.json"} == {k: v for k, v in before.items() if k != "environment.json"}


def test_a_line_altered_between_two_starts_is_found(undisturbed, tmp_path, monkeypatch):
    root, whole = undisturbed
    config = whole["sft"][0]
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 100)
    calls = iter([False] * 3)
    with pytest.raises(StopIteration):
        train(config.build(), open_run(config, root, tmp_path / "run"), lambda: next(calls))
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"grad_norm": ', '"grad_norm": 1'))
    with pytest.raises(TrustError, match=r"grad_norm was 1.* --fresh"):
        begin(config, root, tmp_path / "run")


def free(lock):
    with lock.open() as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def safe(root):
    """Of every run, whether it has a checkpoint or is done."""
    return [(p / "checkpoint" / "state.json").exists() or (p / "DONE").exists() for p in sorted((root / "runs").glob("*"))]


def recorded(root):
    return {p.parent.name: p.read_bytes() for p in (root / "runs").glob("*/metrics.jsonl")}


def grown(root, before, lines):
    """Whether every run that is not done has written so many lines since."""
    unfinished = [p.parent for p in (root / "runs").glob("*/config.json") if not (p.parent / "DONE").exists()]
    now = recorded(root)
    return bool(unfinished) and all(
        now.get(p.name, b"").count(b"\n") >= before.get(p.name, b"").count(b"\n") + lines for p in unfinished
    )


@pytest.fixture(scope="module")
def ordeal(pretrained, tmp_path_factory):
    """One comparison left alone; another killed whole, then its parent alone, then interrupted, then continued."""
    place, rng = tmp_path_factory.mktemp("ordeal"), Random(20261121)
    sweep = place / "stops.toml"
    sweep.write_text(SWEEP)
    calm, rough = new_root(pretrained, place / "calm"), new_root(pretrained, place / "rough")

    def command(root):
        return ("run", sweep, "--no-wandb", "--workers", 2, "--root", root)

    end = bakeoff(*command(calm), cwd=place)
    assert end.returncode == 0, end.stderr

    facts = {"calm": calm, "rough": rough, "snapshots": []}
    for name, number, to_all in (
        ("killed", signal.SIGKILL, True),
        ("orphaned", signal.SIGKILL, False),
        ("asked", signal.SIGINT, False),
    ):
        process, before = start(*command(rough), cwd=place), recorded(rough)
        try:
            if name == "killed":
                until(lambda: all(safe(rough)) and len(safe(rough)) == 2, 120, "two checkpoints")
            else:
                until(lambda before=before: grown(rough, before, 3), 120, f"progress before it is {name}")
            time.sleep(rng.uniform(0, 0.5))
            assert process.poll() is None, "it ended before it could be stopped"
            (os.killpg if to_all else os.kill)(process.pid, number)
            since = time.monotonic()
            _, facts[f"{name} said"] = process.communicate(timeout=60)
            facts[f"{name} code"] = process.returncode
            until(lambda: all(map(free, rough.glob("runs/*/lock"))), 30, f"the workers to end after it was {name}")
            facts[f"{name} seconds"] = time.monotonic() - since
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        facts["snapshots"].append(recorded(rough))
        facts[f"{name} safe"] = safe(rough)
    end = bakeoff(*command(rough), cwd=place)
    return {**facts, "last": end}


@pytest.mark.slow
def test_after_every_kind_of_stop_the_same_command_ends_with_the_undisturbed_numbers(ordeal):
    assert ordeal["last"].returncode == 0, ordeal["last"].stderr
    names = [p.name for p in (ordeal["calm"] / "runs").iterdir()]
    assert len(names) == 2
    for name in names:
        calm, rough = ordeal["calm"] / "runs" / name, ordeal["rough"] / "runs" / name
        assert (rough / "DONE").exists()
        assert numbers(calm)[-1]["step"] > 2 * CHECKPOINT_EVERY
        assert numbers(rough) == numbers(calm)
        assert tree(rough / "evals") == tree(calm / "evals")
        assert tree(rough / "model") == tree(calm / "model")


@pytest.mark.slow
def test_no_line_recorded_before_a_stop_is_altered_or_lost(ordeal):
    snapshots = [*ordeal["snapshots"], recorded(ordeal["rough"])]
    for earlier, later in pairwise(snapshots):
        for name, content in earlier.items():
            whole = content[: content.rfind(b"\n") + 1]
            assert whole
            assert later[name].startswith(whole)


@pytest.mark.slow
def test_workers_whose_parent_is_killed_save_and_stop_by_themselves(ordeal):
    assert ordeal["orphaned code"] == -signal.SIGKILL
    assert ordeal["orphaned seconds"] < 15
    assert ordeal["orphaned safe"] == [True, True]


@pytest.mark.slow
def test_an_interrupt_saves_says_so_and_exits_130(ordeal):
    assert ordeal["asked code"] == INTERRUPTED
    assert "stopping after the batch under way; the same command continues" in ordeal["asked said"]
    assert "runs to go; the same command continues" in ordeal["asked said"]
    assert "Traceback" not in ordeal["asked said"]
    assert ordeal["asked safe"] == [True, True]
    assert not list((ordeal["rough"] / "runs").glob("*/FAILED"))


@pytest.mark.parametrize("moment", [0, 5])
def test_a_run_bounded_by_seconds_goes_on_from_its_checkpoint_though_no_clock_repeats(pretrained, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 3)
    root = new_root(pretrained, tmp_path)
    config = config_of(root, budget=Budget(seconds=6.0), **SFT)
    with monkeypatch.context() as m:
        m.setattr(Meter, "train", dying_at(moment, Meter.train))
        with pytest.raises(Killed):
            begin(config, root, root / "run")
    left = files.read_jsonl(root / "run" / "metrics.jsonl")
    saved = files.read_json(root / "run" / "checkpoint" / "state.json")["line"]
    begin(config, root, root / "run")
    rows = files.read_jsonl(root / "run" / "metrics.jsonl")
    assert rows[:saved] == left[:saved]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert rows[-1]["budget/seconds"] >= 6.0
    evaluated = {row["step"] for row in rows if "eval/pass@1" in row}
    assert {int(p.name.split("-")[0]) for p in (root / "run" / "evals").glob("*-validation.jsonl")} == evaluated
