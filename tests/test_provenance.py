"""The command that the report gives for a run computes that run: the same settings, so the same directory."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import SMOKE
from synthetic import write_comparison

from harness.comparison import Comparison
from harness.environment import typed
from reports.load import load
from reports.provenance import commands, redo


def test_the_command_of_every_run_is_that_run_and_what_it_starts_from(tmp_path):
    overrides = ["seeds=[0,1]", "methods.grpo.beta=0.5", 'methods.after={method="grpo",start="sft"}', "name=mine"]
    runs = Comparison.load(SMOKE, overrides).runs(tmp_path)
    for run in runs:
        folder = tmp_path / "runs" / run.id
        folder.mkdir(parents=True)
        folder.joinpath("config.json").write_text(json.dumps(asdict(run)))
        argv = ["/somewhere/bakeoff", "run", str(SMOKE), *overrides, "--root", str(tmp_path)]
        folder.joinpath("environment.json").write_text(json.dumps({"argv": argv}))
    comparison = tmp_path / "comparisons" / "mine"
    comparison.mkdir(parents=True)
    comparison.joinpath("comparison.toml").write_text(SMOKE.read_text())
    comparison.joinpath("runs.txt").write_text("\n".join(run.id for run in runs))
    loaded = load(tmp_path, "mine")
    for run in loaded.runs:
        command = shlex.split(redo(loaded, run))
        assert command[:2] == ["bakeoff", "run"]
        made = [one.id for one in Comparison.load(Path(command[2]), command[3:]).runs(tmp_path)]
        assert made[-1] == run.id
        assert len(made) == 1 + len(run.stages)


def test_a_run_of_a_search_has_no_command_of_its_own_but_the_search_has(tmp_path):
    identities = write_comparison(tmp_path, arms=("sft",), seeds=1)
    argv = ["bakeoff", "sweep", "sweeps/search_sft.toml"]
    (tmp_path / "runs" / identities[0] / "environment.json").write_text(json.dumps({"argv": argv}))
    comparison = load(tmp_path, "demo")
    assert redo(comparison, comparison.runs[0]) == ""
    assert commands(comparison) == ["bakeoff sweep sweeps/search_sft.toml"]


@pytest.mark.parametrize("root", [["--root", "/here"], ["--root=/here"], []])
def test_where_the_program_and_the_root_lie_is_not_written_down(root):
    assert typed(["/there/bin/bakeoff", "run", *root, "x.toml"]) == ["bakeoff", "run", "x.toml"]


def test_a_run_that_does_not_say_how_it_was_started_has_no_command(tmp_path):
    identities = write_comparison(tmp_path, arms=("sft", "sft-grpo"), seeds=1)
    (tmp_path / "runs" / identities[0] / "environment.json").write_text("{}")
    comparison = load(tmp_path, "demo")
    assert redo(comparison, comparison.runs[0]) == ""
    assert "sweeps/demo.toml" in redo(comparison, comparison.runs[1])
