"""The W&B mirror shows what metrics.jsonl holds, and its troubles are never the run's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SFT, config_of, environment, numbers, open_run

from harness import files
from harness.tracker import WandbTracker, logged_in
from harness.train import train
from harness.worker import execute


def read_back(folder):
    """The records of the one mirror in a run's directory, by kind."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    end = subprocess.run(
        [wandb, "leet", "inspect", "--json", path], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in end.stdout.split("\n") if line]


@pytest.mark.slow
def test_the_mirror_holds_the_rows_of_metrics_and_the_runs_configuration(smoke):
    for arm in ("sft-s0", "grpo-random-s1"):
        folder = smoke.runs[arm]
        records = read_back(folder)
        history = [r["history"]["item"] for r in records if r["type"] == "history"]
        shown = [item for item in history if any(key.startswith("samples") for key in item)]
        rows = [{k: v for k, v in item.items() if not k.startswith("_")} for item in history if item not in shown]
        assert rows == files.read_jsonl(folder / "metrics.jsonl")
        run = next(r["run"] for r in records if r["type"] == "run")
        config = files.read_json(folder / "config.json")
        assert (run["run_group"], run["job_type"], run["run_id"]) == ("smoke", config["method"], folder.name)
        assert (run["display_name"], run["project"]) == (folder.name, "bakeoff")
        mirrored = {k: v for k, v in run["config"]["update"].items() if k != "_wandb"}
        assert mirrored == config
        assert len(shown) == (arm != "sft-s0")


@pytest.mark.slow
def test_a_mirror_that_does_not_start_warns_and_the_run_ends_with_the_same_numbers(root, monkeypatch):
    config = config_of(root, steps=2, **SFT)
    folder = root / "runs" / config.id
    monkeypatch.setenv("WANDB_MODE", "no such mode")
    with pytest.warns(RuntimeWarning, match=r"(?s)W&B mirror stopped: .*metrics\.jsonl goes on"):
        assert execute(config, root, folder, "one", True, lambda: False) == 0
    assert (folder / "DONE").exists()
    train(config.build(), open_run(config, root, root / "without"))
    assert numbers(folder) == numbers(root / "without")


def test_a_mirror_without_wandb_installed_warns_and_goes_on(root, monkeypatch):
    config = config_of(root, steps=1, **SFT)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="W&B mirror stopped"):
        tracker = WandbTracker(config, root / "runs" / config.id, "one")
    tracker.log({"step": 0})
    tracker.finish(True)


@pytest.mark.slow
def test_a_mirror_that_breaks_on_the_way_warns_once_and_is_left_alone(root):
    import wandb

    wandb.teardown()
    config = config_of(root, steps=1, **SFT)
    folder = root / "runs" / config.id
    folder.mkdir(parents=True)
    tracker = WandbTracker(config, folder, "one")
    tracker.log({"step": 0, "loss": 1.5})
    wandb.finish()
    with pytest.warns(RuntimeWarning, match=r"W&B mirror stopped: .*finished.*; metrics\.jsonl goes on"):
        tracker.log({"step": 1, "loss": 0.5})
    tracker.log({"step": 2, "loss": 0.25})
    tracker.finish(False)
    history = [r["history"]["item"] for r in read_back(folder) if r["type"] == "history"]
    assert [(item["step"], item["loss"]) for item in history] == [(0, 1.5)]


@pytest.mark.parametrize(
    ("key", "netrc", "expected"),
    [
        ("0" * 40, None, True),
        (None, None, False),
        (None, "machine api.wandb.ai login user password x\n", True),
        (None, "machine example.org login user password x\n", False),
        (None, "not a netrc\n", False),
    ],
)
def test_runs_go_online_only_for_who_has_logged_in(tmp_path, monkeypatch, key, netrc, expected):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path))
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    assert logged_in() == expected
