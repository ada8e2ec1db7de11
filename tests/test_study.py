"""Studies: who takes which trial, and what a kill may cost."""

import json
import time
import warnings
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.trial import TrialState

from harness.errors import USAGE, BakeoffError
from harness.search import Search
from harness.study import JournalFile, importances, open_storage
from tests.searches import SEARCH, ended, opened, shared_out, told, workers


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2", "grid"])
def test_a_search_that_was_interrupted_draws_what_it_would_have_drawn(search_file, tmp_path, sampler):
    search = replace(Search.load(search_file), sampler=sampler, trials=14)

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


def test_a_trial_of_a_dead_process_is_taken_up_with_its_number_and_values(search_file, tmp_path):
    search = Search.load(search_file)
    study = opened(search, tmp_path / "s")
    lost = study.claim()
    other = opened(search, tmp_path / "s").claim()
    assert other.number == 1  # the first is held
    lost.held.__exit__(None, None, None)  # what the system does where a process dies
    again = opened(search, tmp_path / "s").claim()
    assert (again.number, again.drawn) == (lost.number, lost.drawn)
    assert len(again.trial.user_attrs["begun"]) == 2


def test_a_trial_that_was_killed_before_it_had_values_gets_them(search_file, tmp_path):
    search = Search.load(search_file)
    study = opened(search, tmp_path / "s")
    study.study.ask()
    claim = opened(search, tmp_path / "s").claim()
    assert claim.number == 0
    assert set(claim.drawn) == {"lr", "beta"}


def test_half_a_line_that_a_kill_has_left_costs_nothing(search_file, tmp_path):
    search = Search.load(search_file)
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


def test_another_search_under_the_same_name_is_refused_and_nothing_is_changed(search_file, tmp_path):
    search = Search.load(search_file)
    told(opened(search, tmp_path / "s"))
    before = (tmp_path / "s" / "journal.log").read_bytes()
    other = {"a": 1, "search": {"lr": {"uniform": [0.1, 0.2]}}}
    for identity, said in (({"a": 2}, "was begun with another a"), (other, "was begun with another search")):
        with pytest.raises(BakeoffError, match=f"study small/sft: .*{said}.*; give the search another name") as refused:
            opened(search, tmp_path / "s", identity=identity)
        assert refused.value.code == USAGE
    assert (tmp_path / "s" / "journal.log").read_bytes() == before


def test_a_study_whose_runs_are_elsewhere_is_refused(search_file, tmp_path):
    search, url = Search.load(search_file), f"sqlite:///{tmp_path / 'shared.db'}"
    opened(search, tmp_path / "here", url)
    with pytest.raises(BakeoffError, match="its runs are in another folder; share one --root"):
        opened(search, tmp_path / "there", url)


@pytest.mark.slow
def test_two_processes_share_the_trials_of_a_journal(search_file, tmp_path):
    search_file.write_text(SEARCH.replace("trials = 3", "trials = 30"))
    shared_out(search_file, tmp_path / "root")


@pytest.mark.scale
def test_kills_at_any_moment_lose_no_trial_and_count_none_twice(search_file, tmp_path):
    search_file.write_text(SEARCH.replace("trials = 3", "trials = 40"))
    search, folder = Search.load(search_file), tmp_path / "root" / "studies" / "small"
    for wait in (0.0, 0.3, 0.7):
        (process,) = workers(1, search_file, tmp_path / "root")
        process.stdout.readline()  # it has a trial
        time.sleep(wait)
        process.kill()
        process.communicate()
    assert any(t.state == TrialState.RUNNING for t in ended(search, folder))
    (last,) = workers(1, search_file, tmp_path / "root")
    last.communicate(timeout=240)
    trials = ended(search, folder)
    assert [t.number for t in trials] == list(range(40))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert max(len(t.user_attrs["begun"]) for t in trials) > 1


def test_importances_are_not_told_of_few_trials(search_file, tmp_path):
    search = replace(Search.load(search_file), sampler="random", trials=30)
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


@pytest.mark.parametrize("pruner", ["wilcoxon", "median"])
def test_a_pruner_gives_up_the_trial_that_is_behind_and_no_other(search_file, tmp_path, pruner):
    study = opened(replace(Search.load(search_file), pruner=pruner, sampler="random", trials=20), tmp_path / "s")
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


def test_the_dashboard_shows_the_trials_of_a_journal(search_file, tmp_path):
    told(opened(Search.load(search_file), tmp_path / "s"))
    app = optuna_dashboard.wsgi(open_storage(None, tmp_path / "s"))
    environ = {"PATH_INFO": "/api/studies/0"}
    setup_testing_defaults(environ)
    said = []
    shown = json.loads(b"".join(app(environ, lambda status, *_: said.append(status))))
    assert said == ["200 OK"]
    assert shown["name"] == "small/sft"
    assert [(trial["state"], trial["values"]) for trial in shown["trials"]] == [("Complete", [0.5])]


def test_the_journal_is_one_that_optuna_reads(search_file, tmp_path):
    told(opened(Search.load(search_file), tmp_path / "s"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / "journal.log")))
    assert [s.study_name for s in optuna.get_all_study_summaries(storage)] == ["small/sft"]
    assert isinstance(JournalFile(tmp_path / "s" / "journal.log"), optuna.storages.journal.JournalFileBackend)
