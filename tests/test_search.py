"""Searches: what is refused, who takes which trial, and what a kill may cost."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState

from harness import files, launch
from harness.errors import MISSING, USAGE, BakeoffError
from harness.search import Search
from harness.study import JournalFile, StudyOf, importances, open_storage
from harness.sweep import Sweep
from tests.conftest import REPOSITORY, bakeoff, numbers, start, until

TOML = """
question = "?"
tasks = ["knights"]
models = ["smoke"]
seeds = [1000, 1001]
confirm_seeds = [1100, 1101]
report_seeds = [0, 1]
budget = { steps = 2 }
trials = 3
evaluation = { points = 1, validation_problems = 8, validation_samples = 1, test_problems = 8, ood_problems = 0 }

[methods.sft]
method = "sft"
prompts = 4
lr = 1e-3
"""
SEARCH = TOML + 'search = ["lr", "beta"]\n'

# a process that takes trials and tells them, without training: args are the search file, root and storage
WORKER = """
import sys, time
from pathlib import Path
from optuna.trial import TrialState
from harness.search import Search
from harness.study import StudyOf, open_storage
file, root, url = sys.argv[1:]
search = Search.load(Path(file))
folder = Path(root) / "studies" / search.name
study = StudyOf(search, "sft", {"a": 1}, open_storage(url or None, folder), folder)
print("ready", flush=True)
sys.stdin.readline()
while claim := study.claim():
    print(claim.number, flush=True)
    time.sleep(0.2)
    with study.alone():
        study.tell(claim, TrialState.COMPLETE, [claim.drawn["lr"]], {}, {})
    claim.held.__exit__(None, None, None)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SEARCH)
    return path


def loaded(tmp_path, text):
    path = tmp_path / "asked.toml"
    path.write_text(text)
    return Search.load(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", r'methods.sft: needs search = \["lr", …\], of lr, prompts, group, beta, or a table of ranges'),
        ('search = ["lrr"]', "methods.sft.search: sft has no option 'lrr' .did you mean 'lr'"),
        ('search = ["lr", "lr"]', "methods.sft.search: 'lr' is there twice"),
        ('search = ["source"]', "methods.sft.search: sft declares no range for 'source'; write search.source ="),
        ("search.lr = { log_uniform = [0.0, 1.0] }", "methods.sft.search.lr: a logarithmic range starts above 0"),
        ("search.lr = { uniform = [0.5, 0.1] }", "methods.sft.search.lr: the minimum 0.5 is above the maximum 0.1"),
        ("search.lr = { uniform = [0.5, 0.5] }", "methods.sft.search.lr: an empty range"),
        ("search.lr = { uniform = [-1.0, 0.5] }", "methods.sft.search: lr: must be greater than 0, not -1.0"),
        ("search.prompts = { uniform = [4.0, 64.0] }", "methods.sft.search: prompts: must be a valid integer"),
        ('search = ["lr"]\nstart = "sft"', "methods.sft.start: a search starts from the base"),
    ],
)
def test_a_search_that_could_not_run_is_refused_by_name(tmp_path, line, said):
    with pytest.raises(BakeoffError, match=said) as refused:
        loaded(tmp_path, TOML + line)
    assert refused.value.code == USAGE
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("trials = 3", "trails = 3", "trails: unknown key .did you mean 'trials'"),
        ("seeds = [1000, 1001]", "seeds = [1000]", "seeds: "),
        ("confirm_seeds = [1100, 1101]", "confirm_seeds = [1000, 1101]", "seeds: 1000 is there twice"),
        ("report_seeds = [0, 1]", "report_seeds = [0, 1001]", "seeds: 1001 is there twice"),
        ("trials = 3", 'trials = 3\nobjectives = ["kl"]', "objectives: kl alone is least where nothing is learnt"),
        ("trials = 3", 'trials = 3\nobjectives = ["reward", "kl"]\npruner = "median"', "pruner: two objectives cannot be pruned"),
        ("trials = 3", 'trials = 3\nsampler = "tpee"', "sampler: must be 'tpe'"),
        ("trials = 3", "trials = 3\nconstraints = { kl = 0 }", "constraints.kl: must be greater than 0"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path, before, after, said):
    with pytest.raises(BakeoffError, match=said):
        loaded(tmp_path, SEARCH.replace(before, after))


def test_a_grid_needs_as_many_cells_as_trials(tmp_path):
    asked = TOML.replace("trials = 3", 'trials = 5\nsampler = "grid"')
    with pytest.raises(BakeoffError, match="has 2 cells and 5 trials are asked; ask for at most 2"):
        loaded(tmp_path, asked + "search.prompts = { choice = [4, 8] }")
    assert loaded(tmp_path, asked + "search.lr = { uniform = [0.1, 0.2] }")


def test_every_search_of_the_repository_can_be_read():
    found = sorted(REPOSITORY.glob("sweeps/search_*.toml"))
    assert len(found) == 5
    for path in (*found, REPOSITORY / "sweeps" / "tuned.toml"):
        search = Search.load(path)
        assert all(search.ranges[label] for label in search.methods)
    assert {search.methods[label]["method"] for label in search.methods} == {"sft", "distill", "ppo", "dpo", "grpo"}


def opened(search, folder, url=None, identity=None):
    return StudyOf(search, "sft", identity or {"a": 1}, open_storage(url, folder), folder)


def told(study, values=None):
    claim = study.claim()
    study.tell(claim, TrialState.COMPLETE, [values(claim.drawn) if values else 0.5], {}, {})
    claim.held.__exit__(None, None, None)
    return claim


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2", "grid"])
def test_a_search_that_was_interrupted_draws_what_it_would_have_drawn(file, tmp_path, sampler):
    search = replace(Search.load(file), sampler=sampler, trials=14)

    def drawn(folder, at_once):
        out = []
        while len(out) < search.trials:
            study = opened(search, folder)  # as a new process would
            out += [told(study, lambda d: d["lr"] * (1 - d["beta"])).drawn for _ in range(min(at_once, search.trials - len(out)))]
        return out

    whole = drawn(tmp_path / "whole", 14)
    assert drawn(tmp_path / "in-pieces", 3) == whole
    assert len({json.dumps(one) for one in whole}) == 14
    assert opened(search, tmp_path / "whole").claim() is None


def test_a_trial_of_a_dead_process_is_taken_up_with_its_number_and_values(file, tmp_path):
    search = Search.load(file)
    study = opened(search, tmp_path / "s")
    lost = study.claim()
    other = opened(search, tmp_path / "s").claim()
    assert other.number == 1  # the first is held
    lost.held.__exit__(None, None, None)  # what the system does where a process dies
    again = opened(search, tmp_path / "s").claim()
    assert (again.number, again.drawn) == (lost.number, lost.drawn)
    assert len(again.trial.user_attrs["begun"]) == 2


def test_a_trial_that_was_killed_before_it_had_values_gets_them(file, tmp_path):
    search = Search.load(file)
    study = opened(search, tmp_path / "s")
    study.study.ask()
    claim = opened(search, tmp_path / "s").claim()
    assert claim.number == 0
    assert set(claim.drawn) == {"lr", "beta"}


def test_half_a_line_that_a_kill_has_left_costs_nothing(file, tmp_path):
    search = Search.load(file)
    study = opened(search, tmp_path / "s")
    first = told(study)
    with (tmp_path / "s" / "journal.log").open("ab") as f:
        f.write(b'{"op_code":5,"worker_id":"tor')
    second = told(study)  # a process that lives on
    with (tmp_path / "s" / "journal.log").open("ab") as f:
        f.write(b'{"op_code"')
    third = told(opened(search, tmp_path / "s"))
    assert [first.number, second.number, third.number] == [0, 1, 2]
    for line in (tmp_path / "s" / "journal.log").read_bytes().split(b"\n")[:-1]:
        json.loads(line)


def test_another_search_under_the_same_name_is_refused_and_nothing_is_changed(file, tmp_path):
    search = Search.load(file)
    told(opened(search, tmp_path / "s"))
    before = (tmp_path / "s" / "journal.log").read_bytes()
    other = {"a": 1, "search": {"lr": {"uniform": [0.1, 0.2]}}}
    for identity, said in (({"a": 2}, "was begun with another a"), (other, "was begun with another search")):
        with pytest.raises(BakeoffError, match=f"study small/sft: .*{said}.*; give the search another name") as refused:
            opened(search, tmp_path / "s", identity=identity)
        assert refused.value.code == USAGE
    assert (tmp_path / "s" / "journal.log").read_bytes() == before


def test_a_study_whose_runs_are_elsewhere_is_refused(file, tmp_path):
    search, url = Search.load(file), f"sqlite:///{tmp_path / 'shared.db'}"
    opened(search, tmp_path / "here", url)
    with pytest.raises(BakeoffError, match="its runs are in another folder; share one --root"):
        opened(search, tmp_path / "there", url)


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("postgresql://bakeoff:secret@127.0.0.1:1/none", MISSING, "refused"),
        ("sqlite:////no/such/folder/x.db", MISSING, "unable to open"),
        ("nonsense", USAGE, "--storage nonsense: not a URL of a database"),
        ("grpc://127.0.0.1:1", MISSING, "--storage grpc://127.0.0.1:1: nobody answers"),
        ("grpc://127.0.0.1:abc", USAGE, "--storage grpc://127.0.0.1:abc: not a URL of a database"),
        ("postgresql://u@host:abc/db", USAGE, "--storage postgresql://host:abc/db: not a URL of a database"),
        ("nosuch://host/x", USAGE, "--storage nosuch://host/x: no such kind of database"),
    ],
)
def test_a_storage_that_is_not_there_is_one_clear_line(cli, file, root, monkeypatch, url, code, said):
    monkeypatch.setattr("harness.study.SERVER_SECONDS", 1.0)
    status, out, err = cli("sweep", file, "--storage", url, "--root", root)
    assert (status, out) == (code, "")
    assert said in err
    assert "secret" not in err
    assert err.count("\n") == 1
    assert not (root / "comparisons").exists()


def workers(n, file, root, url=""):
    command = [sys.executable, "-c", WORKER, str(file), str(root), url]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    begun = [subprocess.Popen(command, env=environment, cwd=REPOSITORY, **pipes) for _ in range(n)]
    for process in begun:
        assert process.stdout.readline() == "ready\n"
    for process in begun:
        process.stdin.write("\n")
        process.stdin.flush()
    return begun


def ended(search, folder, url=None):
    storage = open_storage(url, folder)
    trials = StudyOf(search, "sft", {"a": 1}, storage, folder).trials()
    storage.remove_session()
    if hasattr(storage, "engine"):
        storage.engine.dispose()
    return trials


def shared_out(file, root, url=""):
    """Two processes on one study, then a third: every trial once, and as many as were asked for."""
    search = Search.load(file)
    claimed = [[int(line) for line in process.communicate(timeout=240)[0].split()] for process in workers(2, file, root, url)]
    assert sorted(claimed[0] + claimed[1]) == list(range(search.trials))
    assert all(claimed)
    (late,) = workers(1, file, root, url)
    assert late.communicate(timeout=240)[0] == ""
    trials = ended(search, root / "studies" / "small", url or None)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * search.trials
    assert len({t.params["lr"] for t in trials}) == search.trials


@pytest.mark.slow
def test_two_processes_share_the_trials_of_a_journal(file, tmp_path):
    file.write_text(SEARCH.replace("trials = 3", "trials = 30"))
    shared_out(file, tmp_path / "root")


@pytest.mark.scale
def test_kills_at_any_moment_lose_no_trial_and_count_none_twice(file, tmp_path):
    file.write_text(SEARCH.replace("trials = 3", "trials = 40"))
    search, folder = Search.load(file), tmp_path / "root" / "studies" / "small"
    for wait in (0.0, 0.3, 0.7):
        (process,) = workers(1, file, tmp_path / "root")
        process.stdout.readline()  # it has a trial
        time.sleep(wait)
        process.kill()
        process.communicate()
    assert any(t.state == TrialState.RUNNING for t in ended(search, folder))
    (last,) = workers(1, file, tmp_path / "root")
    last.communicate(timeout=240)
    trials = ended(search, folder)
    assert [t.number for t in trials] == list(range(40))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert max(len(t.user_attrs["begun"]) for t in trials) > 1


def test_importances_are_not_told_of_few_trials(file, tmp_path):
    search = replace(Search.load(file), sampler="random", trials=30)
    study = opened(search, tmp_path / "s")
    for _ in range(29):
        told(study, lambda d: d["lr"])
    assert importances(study.study, study.ranges) == {}
    told(study, lambda d: d["lr"])
    found = importances(study.study, study.ranges)
    assert list(found) == ["PED-ANOVA", "fANOVA"]
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["lr"] > 0.8 > shares["beta"]


def rows(root):
    return files.read_jsonl(root / "comparisons" / "small" / "trials.jsonl")


@pytest.mark.scale
def test_a_search_survives_the_kill_of_its_parent_and_of_a_worker(file, root, tmp_path):
    file.write_text(SEARCH.replace("steps = 2", "steps = 30"))
    first = start("sweep", file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    until(lambda: rows_done(root) >= 1 and at_work(root), 240, "the second trial")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = start("sweep", file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
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
    assert bakeoff("sweep", file, "device=cpu", "--workers", 2, "--root", undisturbed, cwd=tmp_path).returncode == 0
    for mine, theirs in zip(found, rows(undisturbed), strict=True):
        assert {k: mine[k] for k in ("options", "means", "seeds", "runs", "flops")} == {
            k: theirs[k] for k in ("options", "means", "seeds", "runs", "flops")
        }
        for run in mine["runs"]:
            assert numbers(root / "runs" / run) == numbers(undisturbed / "runs" / run)
    again = bakeoff("sweep", file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
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


@pytest.mark.parametrize("pruner", ["wilcoxon", "median"])
def test_a_pruner_gives_up_the_trial_that_is_behind_and_no_other(file, tmp_path, pruner):
    study = opened(replace(Search.load(file), pruner=pruner, sampler="random", trials=20), tmp_path / "s")
    each = 40 if pruner == "wilcoxon" else 1  # problems, or their mean

    def tried(share):
        claim = study.claim()
        scores = [float(i < share * 40) for i in range(40)] if each == 40 else [share]
        pruned = study.prune(claim, scores, 0)
        study.tell(claim, TrialState.PRUNED if pruned else TrialState.COMPLETE, None if pruned else [share], {}, {})
        claim.held.__exit__(None, None, None)
        return pruned

    assert not any(tried(share) for share in (0.5, 0.55, 0.6, 0.5, 0.6))
    assert tried(0.1)
    assert not tried(0.9)


@pytest.mark.scale
@pytest.mark.parametrize("pruner", ["wilcoxon", "median"])
def test_a_trial_that_is_pruned_spends_one_seed_and_is_asked_about_after_it(cli, file, root, monkeypatch, pruner):
    asked = []

    def prune(_, claim, scores, step):
        asked.append((claim.number, len(scores), step))
        return claim.number % 2 == 0

    monkeypatch.setattr(StudyOf, "prune", prune)
    file.write_text(SEARCH.replace("trials = 3", f'trials = 4\npruner = "{pruner}"'))
    code, _, err = cli("sweep", file, "device=cpu", "--workers", 2, "--root", root)
    assert code == 0, err
    assert sorted(asked) == [(number, 8 if pruner == "wilcoxon" else 1, 0) for number in range(4)]
    states = {row["trial"]: (row["state"], len(row["seeds"]), len(row["runs"])) for row in rows(root)}
    assert states == {n: ("pruned", 1, 1) if n % 2 == 0 else ("complete", 2, 2) for n in range(4)}


@pytest.mark.scale
def test_of_two_objectives_the_trials_on_the_front_are_run_again(file, root, tmp_path):
    asked = 'trials = 6\nsampler = "nsga2"\nobjectives = ["reward", "kl"]\nconstraints = { kl = 5.0 }'
    file.write_text(SEARCH.replace("trials = 3", asked))
    done = bakeoff("sweep", file, "device=cpu", "--workers", 2, "--root", root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [(row["means"]["reward"], -row["means"]["kl"], row["trial"]) for row in rows(root)]
    beaten = {c for a, b, c in found for x, y, _ in found if x >= a and y >= b and (x, y) != (a, b)}
    summary = json.loads((root / "comparisons" / "small" / "search.json").read_text())
    again = [one["trial"] for one in summary["studies"]["sft"]["again"]]
    front = [c for *_, c in sorted(found, key=lambda one: (-one[0], one[2])) if c not in beaten]
    assert again == front[:3]


def test_a_database_that_cannot_be_written_is_one_clear_line(cli, file, root, tmp_path):
    path = tmp_path / "trials.db"
    open_storage(f"sqlite:///{path}", tmp_path / "made").engine.dispose()
    code, _, err = cli("sweep", file, "--storage", f"sqlite:///file:{path}?mode=ro&uri=true", "--root", root)
    assert code == MISSING
    assert "does not answer as it should" in err
    assert err.count("\n") == 1


TEACHER = """
[methods.distill]
method = "distill"
search.teacher = { choice = ["teacher", "dense"] }
"""


def test_which_model_teaches_is_not_searched(tmp_path):
    with pytest.raises(BakeoffError, match="'teacher' names a model, which is no option to search"):
        loaded(tmp_path, SEARCH + TEACHER)


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


@pytest.mark.usefixtures("pretended")
def test_values_that_a_method_refuses_together_fail_their_trial_and_no_other(tmp_path):
    text = SEARCH.replace("trials = 3", "trials = 8").split("[methods.sft]")[0] + PLAIN
    sweep, _ = searched(tmp_path, text)
    states = {(row["options"]["surrogate"], row["options"]["epochs"] > 1, row["state"]) for row in sweep.rows()}
    assert len(sweep.rows()) == 8
    assert {state for *pair, state in states if pair == ["plain", True]} == {"fail"}
    assert {state for *pair, state in states if pair != ["plain", True]} == {"complete"}
    assert all(row["why"] for row in sweep.rows() if row["state"] == "fail")


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


def test_optuna_is_asked_for_by_name_where_it_is_missing(cli, file, monkeypatch):
    monkeypatch.setattr("harness.cli.find_spec", lambda _: None)
    code, _, err = cli("sweep", file)
    assert code == MISSING
    assert "pip install 'bakeoff[optuna]'" in err


def test_a_proxy_is_asked_for_by_name_where_its_library_is_missing(cli, file, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    code, _, err = cli("sweep", file, "--storage", "grpc://127.0.0.1:1", "--root", root)
    assert code == MISSING
    assert err.endswith("--storage grpc://127.0.0.1:1: needs grpc; pip install 'bakeoff[grpc]'\n")


def test_the_dashboard_shows_the_trials_of_a_journal(file, tmp_path):
    told(opened(Search.load(file), tmp_path / "s"))
    app = optuna_dashboard.wsgi(open_storage(None, tmp_path / "s"))
    environ = {"PATH_INFO": "/api/studies/0"}
    setup_testing_defaults(environ)
    said = []
    shown = json.loads(b"".join(app(environ, lambda status, *_: said.append(status))))
    assert said == ["200 OK"]
    assert shown["name"] == "small/sft"
    assert [(trial["state"], trial["values"]) for trial in shown["trials"]] == [("Complete", [0.5])]


def test_the_journal_is_one_that_optuna_reads(file, tmp_path):
    told(opened(Search.load(file), tmp_path / "s"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / "journal.log")))
    assert [s.study_name for s in optuna.get_all_study_summaries(storage)] == ["small/sft"]
    assert isinstance(JournalFile(tmp_path / "s" / "journal.log"), optuna.storages.journal.JournalFileBackend)
