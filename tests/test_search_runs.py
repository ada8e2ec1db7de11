"""Searches whose trials are run: kills, pruning, several objectives, and what is run again."""

import json
import os
import signal

import pytest

from harness import files, launch
from harness.errors import BakeoffError
from harness.study import StudyOf
from harness.sweep import Sweep
from tests.conftest import bakeoff, numbers, start, until
from tests.searches import SEARCH, loaded


def rows(root):
    return files.read_jsonl(root / "comparisons" / "small" / "trials.jsonl")


@pytest.mark.scale
def test_a_search_survives_the_kill_of_its_parent_and_of_a_worker(search_file, root, tmp_path):
    search_file.write_text(SEARCH.replace("steps = 2", "steps = 30"))
    first = start("sweep", search_file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    until(lambda: rows_done(root) >= 1 and at_work(root), 240, "the second trial")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start("sweep", search_file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    until(lambda: at_work(root) and rows_done(root) < 3, 240, "a worker")
    os.kill(int(at_work(root)[0]), signal.SIGKILL)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    assert "sft-tuned" in out
    found = rows(root)
    assert [row["trial"] for row in found] == [0, 1, 2]
    assert {row["state"] for row in found} == {"complete"}
    assert max(len(row["begun"]) for row in found) == 2
    assert len({run for row in found for run in row["runs"]}) == 6
    undisturbed = tmp_path / "undisturbed"
    (undisturbed / "bases").parent.mkdir()
    (undisturbed / "bases").symlink_to(root / "bases")
    assert bakeoff("sweep", search_file, "device=cpu", "--workers", 2, "--root", undisturbed, cwd=tmp_path).returncode == 0
    for mine, theirs in zip(found, rows(undisturbed), strict=True):
        assert {k: mine[k] for k in ("options", "means", "seeds", "runs", "flops")} == {
            k: theirs[k] for k in ("options", "means", "seeds", "runs", "flops")
        }
        for run in mine["runs"]:
            assert numbers(root / "runs" / run) == numbers(undisturbed / "runs" / run)
    again = bakeoff("sweep", search_file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    assert again.returncode == 0
    assert "3 of 3 trials done" in again.stderr
    assert rows(root) == found


def rows_done(root):
    path = root / "comparisons" / "small" / "trials.jsonl"
    return sum(row["state"] == "complete" for row in files.read_jsonl(path))


def at_work(root):
    """The processes of runs that are under way and have begun to train."""
    found = []
    for path in (root / "runs").glob("*/lock"):
        if (
            not (path.parent / "DONE").exists()
            and (path.parent / "metrics.jsonl").exists()
            and files.read_jsonl(path.parent / "metrics.jsonl")
        ):
            found.append(path.read_text().strip())
    return [pid for pid in found if pid and os.path.exists(f"/proc/{pid}")]


@pytest.mark.scale
@pytest.mark.parametrize("pruner", ["wilcoxon", "median"])
def test_a_trial_that_is_pruned_spends_one_seed_and_is_asked_about_after_it(cli, search_file, root, monkeypatch, pruner):
    asked = []

    def prune(_, claim, scores, step):
        asked.append((claim.number, len(scores), step))
        return claim.number % 2 == 0

    monkeypatch.setattr(StudyOf, "prune", prune)
    search_file.write_text(SEARCH.replace("trials = 3", f'trials = 4\npruner = "{pruner}"'))
    code, _, err = cli("sweep", search_file, "device=cpu", "--workers", 2, "--root", root)
    assert code == 0, err
    assert sorted(asked) == [(number, 8 if pruner == "wilcoxon" else 1, 0) for number in range(4)]
    states = {row["trial"]: (row["state"], len(row["seeds"]), len(row["runs"])) for row in rows(root)}
    assert states == {n: ("pruned", 1, 1) if n % 2 == 0 else ("complete", 2, 2) for n in range(4)}


@pytest.mark.scale
def test_of_two_objectives_the_trials_on_the_front_are_run_again(search_file, root, tmp_path):
    asked = 'trials = 6\nsampler = "nsga2"\nobjectives = ["reward", "kl"]\nconstraints = { kl = 5.0 }'
    search_file.write_text(SEARCH.replace("trials = 3", asked))
    done = bakeoff("sweep", search_file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [(row["means"]["reward"], -row["means"]["kl"], row["trial"]) for row in rows(root)]
    beaten = {c for a, b, c in found for x, y, _ in found if x >= a and y >= b and (x, y) != (a, b)}
    summary = json.loads((root / "comparisons" / "small" / "search.json").read_text())
    again = [one["trial"] for one in summary["studies"]["sft"]["again"]]
    front = [c for *_, c in sorted(found, key=lambda one: (-one[0], one[2])) if c not in beaten]
    assert again == front[:3]


@pytest.fixture
def pretended(monkeypatch):
    """Runs that are done at once; what each measures is put into this by setting and seed."""
    scores = {}

    def work(self, runs, _):
        failed = {}
        for run in runs:
            found = scores.get((run.options["lr"], run.seed), {"pass@1": run.options["lr"]})
            folder = self.root / "runs" / run.id
            files.write_json(folder / "found.json", {"pass@1": 0.0, "reward": 0.0, "kl": 0.1, "truncated": 0.0} | (found or {}))
            if found is None:
                failed[run.id] = "it has diverged"
            else:
                files.write(folder / "DONE", "")
        return failed

    monkeypatch.setattr(Sweep, "work", work)
    monkeypatch.setattr(Sweep, "ensure_models", lambda *_: None)
    monkeypatch.setattr("harness.sweep.measured", lambda folder: files.read_json(folder / "found.json"))
    monkeypatch.setattr("harness.sweep.cost", lambda _: {"flops": 1.0, "seconds": 1.0})
    return scores


def searched(tmp_path, text):
    sweep = Sweep(loaded(tmp_path, text), tmp_path / "root", None, 2, launch.forked)
    with launch.display() as show:
        sweep.trials(show)
        return sweep, lambda: sweep.confirm(show)


PLAIN = """
[methods.ppo]
method = "ppo"
minibatches = 1
epochs = 1
search.surrogate = { choice = ["clipped", "plain"] }
search.epochs = { choice = [1, 4] }
search.lr = { log_uniform = [1e-4, 1e-3] }
"""

FEW = SEARCH.replace("trials = 3", "trials = 6").replace(
    'search = ["lr", "beta"]', "search.lr = { choice = [0.1, 0.2, 0.3, 0.4] }"
)


@pytest.mark.usefixtures("pretended")
def test_values_that_a_method_refuses_together_fail_their_trial_and_no_other(tmp_path):
    text = SEARCH.replace("trials = 3", "trials = 8").split("[methods.sft]")[0] + PLAIN
    sweep, _ = searched(tmp_path, text)
    states = {(row["options"]["surrogate"], row["options"]["epochs"] > 1, row["state"]) for row in sweep.rows()}
    assert len(sweep.rows()) == 8
    assert {state for *pair, state in states if pair == ["plain", True]} == {"fail"}
    assert {state for *pair, state in states if pair != ["plain", True]} == {"complete"}
    assert all(row["why"] for row in sweep.rows() if row["state"] == "fail")


@pytest.mark.usefixtures("pretended")
def test_equal_settings_are_tried_again_once(tmp_path):
    sweep, _ = searched(tmp_path, FEW.replace("trials = 6", 'trials = 30\nsampler = "random"'))
    assert [row["options"]["lr"] for row in sweep.best("sft")] == [0.4, 0.3, 0.2]


def test_a_best_trial_that_fails_or_leaves_a_cap_on_other_seeds_is_not_chosen(tmp_path, pretended):
    pretended |= {(0.4, 1100): None, (0.3, 1100): {"pass@1": 0.9, "kl": 0.8}, (0.3, 1101): {"pass@1": 0.9, "kl": 0.8}}
    text = FEW.replace("trials = 6", 'trials = 30\nsampler = "random"\nconstraints = { kl = 0.5 }')
    _, confirm = searched(tmp_path, text)
    found = confirm()["sft"]
    assert [one["why"] for one in found["again"]] == ["it has diverged", "kl is 0.8, the cap 0.5", ""]
    assert found["options"] == {"lr": 0.2}


def test_a_search_of_which_no_best_trial_holds_says_what_to_do(tmp_path, pretended):
    pretended |= {(lr, 1100): None for lr in (0.1, 0.2, 0.3, 0.4)}
    _, confirm = searched(tmp_path, FEW)
    with pytest.raises(BakeoffError, match=r"none of the best holds on other seeds .*it has diverged.*ask for more --trials"):
        confirm()
