"""One run on several processes: the same losses, the same gradient, one record."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import METHODS, bakeoff, config_of, environment, new_root, numbers, open_run, start, until
from replay import replay

from harness import devices, files, models, worker
from harness.errors import BUSY, RUNS_FAILED
from harness.generate import generate
from harness.group import Group
from harness.pretrain import pretrain
from harness.train import train

REPLAY = Path(__file__).with_name("replay.py")
TWO = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
STEPS = 20

SWEEP = """
question = "Is a run on two devices the run?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0]
budget = { steps = 3 }
device = "cpu"
micro_batch = 8
evaluation = { points = 1, validation_problems = 8, validation_samples = 1, test_problems = 8, ood_problems = 0 }
methods.sft = { method = "sft", lr = 3e-3, prompts = 32 }
"""


class Shared(Exception):
    """A process has given away what it sampled."""


def test_a_process_takes_every_nth(monkeypatch):
    monkeypatch.setattr(devices, "rank", lambda: 1)
    monkeypatch.setattr(devices, "count", lambda: 2)
    assert list(devices.mine(range(5))) == [1, 3]
    assert list(devices.mine([7])) == []


def test_a_single_process_takes_all_and_speaks_for_all():
    assert list(devices.mine(range(5))) == [0, 1, 2, 3, 4]
    assert (devices.gather("x"), devices.agreed(3), devices.total({"loss": 0.5})) == (["x"], 3, {"loss": 0.5})


@pytest.mark.parametrize("prompts", [[[2, 3], [4], [5, 6, 2]], [[3]]])
def test_completions_sampled_in_shares_are_those_of_one_process_in_their_order(llama, monkeypatch, prompts):
    keys = [f"{p}/{g}" for p in range(len(prompts)) for g in range(2)]
    whole = generate(llama, prompts, 2, keys, 6, 1, 0)
    shares = []

    def leave(share):
        shares.append(share)
        raise Shared

    monkeypatch.setattr(devices, "gather", leave)
    for rank in range(2):
        monkeypatch.setattr(devices, "mine", lambda things, rank=rank: things[rank::2])
        with pytest.raises(Shared):
            generate(llama, prompts, 2, keys, 6, 1, 0)
    monkeypatch.setattr(devices, "gather", lambda _share: shares)
    again = generate(llama, prompts, 2, keys, 6, 1, 0)
    assert (again.tokens, again.ended) == (whole.tokens, whole.ended)
    torch.testing.assert_close([torch.tensor(row) for row in again.logp], [torch.tensor(row) for row in whole.logp])


def stored_run(root, config, folder, stored):
    """A run by a single process, and the rollouts that it took."""
    run = open_run(config, root, folder)
    draw, taken = run.rollouts, []

    def rollouts(problems, group=1):
        taken.append(draw(problems, group))
        return taken[-1]

    run.rollouts = rollouts
    train(config.build(), run)
    torch.save([vars(y) for y in taken], stored)


def losses(folder):
    return [row["loss"] for row in files.read_jsonl(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.scale
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_two_processes_have_the_first_twenty_losses_of_one_on_the_same_rollouts(method, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bakeoff[devices]'")
    base = tmp_path / "dense"
    pretrain(replace(models.presets()["dense"], steps=30, batch=32, threads=1), base, lambda *_: None)
    options = METHODS[method] | {"prompts": 16 if method == "sft" else 8}
    config = replace(config_of(tmp_path, **options, model=base, steps=STEPS), micro_batch=8)
    files.write_json(tmp_path / "config.json", asdict(config))
    stored_run(tmp_path, config, tmp_path / "alone", tmp_path / "stored.pt")
    replay(tmp_path, config, tmp_path / "stored.pt", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "alone")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *TWO, "--main_process_port", "0", REPLAY]
    files_of = [tmp_path, tmp_path / "config.json", tmp_path / "stored.pt", tmp_path / "two"]
    ended = subprocess.run([*launch, *files_of], env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = (losses(tmp_path / "two" / str(rank)) for rank in range(2))
    assert first == second
    assert len(first) == STEPS
    assert first == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    assert max(map(abs, first)) > 1e-3


@pytest.mark.scale
def test_a_comparison_on_two_devices_leaves_one_record_of_the_numbers_of_one(pretrained, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bakeoff[devices]'")
    one, two = (new_root(pretrained, tmp_path / name) for name in ("one", "two"))
    for root, more in ((one, ()), (two, ("--devices", 2))):
        (root / "small.toml").write_text(SWEEP)
        ended = bakeoff("run", "small.toml", "--no-wandb", *more, cwd=root)
        assert ended.returncode == 0, ended.stderr
    (here,), (there,) = (list((root / "runs").iterdir()) for root in (one, two))
    assert {p.name for p in here.iterdir()} == {p.name for p in there.iterdir()}
    for row, other in zip(numbers(here), numbers(there), strict=True):
        assert row.keys() == other.keys()
        assert other == pytest.approx(row, abs=1e-4, nan_ok=True)


@pytest.mark.scale
def test_the_processes_of_a_run_save_and_end_when_the_command_is_killed(pretrained, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bakeoff[devices]'")
    root = new_root(pretrained, tmp_path / "root")
    (root / "small.toml").write_text(SWEEP.replace("steps = 3", "steps = 100000"))
    command = start("run", "small.toml", "--no-wandb", "--devices", 2, cwd=root)
    until(lambda: any(losses(run) for run in (root / "runs").glob("*")), 240, "the first step")
    (run,) = (root / "runs").iterdir()
    os.kill(command.pid, signal.SIGKILL)
    command.communicate()
    with files.lock(run / "lock", "running", patience=60):
        assert (run / "checkpoint" / "state.json").exists()
    until(lambda: not workers_of(run), 60, "the other processes")


def workers_of(run):
    """The processes that have its folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [path.parent.name] if str(run).encode() in path.read_bytes() else []
    return found


def test_weights_that_are_sharded_and_a_folder_that_is_no_run_are_refused_in_a_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        worker.entered(tmp_path)
    assert (end.value.code, capsys.readouterr().err.count("\n")) == (4, 1)
    files.write_json(tmp_path / "config.json", asdict(config_of(tmp_path)))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit) as end:
        worker.entered(tmp_path)
    assert end.value.code == 2
    assert "FSDP" in capsys.readouterr().err


@pytest.mark.parametrize(("held", "failed", "code"), [(False, True, RUNS_FAILED), (True, False, BUSY), (False, False, 1)])
def test_what_became_of_a_run_on_several_devices_is_read_from_its_folder(tmp_path, held, failed, code):
    group = Group.__new__(Group)
    group.folder, group.begun, group.process = tmp_path, time.time() - 5, SimpleNamespace(returncode=1)
    if failed:
        files.write(tmp_path / "FAILED", "a mixture of experts")
    with ExitStack() as stack:
        if held:
            stack.enter_context(files.lock(tmp_path / "lock", "running"))
        assert group.exitcode == code
    group.process.returncode = 0
    assert group.exitcode == 0


def test_devices_and_ray_together_are_refused_in_a_line(cli, tmp_path):
    (tmp_path / "small.toml").write_text(SWEEP)
    code, _, err = cli("run", tmp_path / "small.toml", "--devices", 2, "--backend", "ray", "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "--devices" in err
