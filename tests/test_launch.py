"""Several processes at the same runs: who waits, who is refused, and what nobody loses."""

import os
import tomllib

import pytest
from conftest import bakeoff, new_root, start, tree

from harness import files, launch

SWEEP = """
question = "Who has this run?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0, 1]
budget = { steps = 2 }
device = "cpu"
evaluation = { points = 1, validation_problems = 4, validation_samples = 1, test_problems = 4, ood_problems = 0 }
methods.sft = { method = "sft", lr = 3e-3, prompts = 4 }
"""


@pytest.fixture
def done(pretrained, tmp_path):
    """A root in which a comparison has been run, and its runs."""
    root = new_root(pretrained, tmp_path)
    (root / "small.toml").write_text(SWEEP)
    assert bakeoff("run", "small.toml", "--no-wandb", cwd=root).returncode == 0
    return root, [root / "runs" / name for name in (root / "comparisons" / "small" / "runs.txt").read_text().split()]


@pytest.mark.slow
def test_a_run_that_another_process_has_is_waited_for_and_never_booked_as_failed(done):
    root, (run, _) = done
    (run / "DONE").unlink()
    with start("run", "small.toml", "--no-wandb", cwd=root) as process:
        with files.lock(run / "lock", "running"):
            said = ""
            while f"process {os.getpid()} is at it; waiting for that one" not in said:
                assert process.poll() is None, said
                said += process.stderr.readline()
            assert run.name in said
            assert not (run / "FAILED").exists()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert (run / "DONE").exists()
    assert not (run / "FAILED").exists()


@pytest.mark.slow
def test_fresh_is_refused_before_anything_is_lost_where_another_process_has_one_of_the_runs(done, cli, monkeypatch):
    root, (first, last) = done
    monkeypatch.setattr(launch, "ORPHAN_SECONDS", 0.0)
    monkeypatch.chdir(root)
    before, asked = (tree(folder) | {"lock": ""} for folder in (first, root / "comparisons" / "small"))
    with files.lock(last / "lock", "running"):
        code, _, err = cli("run", "small.toml", "--no-wandb", "--fresh")
    assert code == 2
    assert last.name in err
    assert "is already running here" in err
    assert tree(first) | {"lock": ""} == before
    assert tree(root / "comparisons" / "small") | {"lock": ""} == asked


@pytest.mark.slow
def test_a_command_with_a_line_break_stays_one_comment(done):
    root, _ = done
    asked = bakeoff("run", "small.toml", "question=one\ntwo", "--no-wandb", cwd=root)
    assert asked.returncode == 0, asked.stderr
    kept = (root / "comparisons" / "small" / "comparison.toml").read_text()
    assert tomllib.loads(kept)["question"] == "one\ntwo"
    assert kept.splitlines()[-1].startswith("# asked by: ")


def test_why_a_run_failed_is_not_written_over_what_another_process_makes_of_it(tmp_path):
    with files.lock(tmp_path / "lock", "running"):
        launch.fail(tmp_path, "the process of this run ended with exit code -9")
        assert not (tmp_path / "FAILED").exists()
        assert launch.reason(tmp_path) == "another process has taken it up again"
    launch.fail(tmp_path, "the process of this run ended with exit code -9")
    assert launch.reason(tmp_path) == "the process of this run ended with exit code -9"
