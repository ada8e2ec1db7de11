"""Searches: what is refused."""

import sys

import pytest

from harness.errors import MISSING, USAGE, BakeoffError
from harness.search import Search
from harness.study import open_storage
from tests.conftest import REPOSITORY
from tests.searches import SEARCH, TOML, loaded


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
def test_a_storage_that_is_not_there_is_one_clear_line(cli, search_file, root, monkeypatch, url, code, said):
    monkeypatch.setattr("harness.study.SERVER_SECONDS", 1.0)
    status, out, err = cli("sweep", search_file, "--storage", url, "--root", root)
    assert (status, out) == (code, "")
    assert said in err
    assert "secret" not in err
    assert err.count("\n") == 1
    assert not (root / "comparisons").exists()


def test_a_database_that_cannot_be_written_is_one_clear_line(cli, search_file, root, tmp_path):
    path = tmp_path / "trials.db"
    open_storage(f"sqlite:///{path}", tmp_path / "made").engine.dispose()
    code, _, err = cli("sweep", search_file, "--storage", f"sqlite:///file:{path}?mode=ro&uri=true", "--root", root)
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


def test_optuna_is_asked_for_by_name_where_it_is_missing(cli, search_file, monkeypatch):
    monkeypatch.setattr("harness.cli.compute.find_spec", lambda _: None)
    code, _, err = cli("sweep", search_file)
    assert code == MISSING
    assert "pip install 'bakeoff[optuna]'" in err


def test_a_proxy_is_asked_for_by_name_where_its_library_is_missing(cli, search_file, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    code, _, err = cli("sweep", search_file, "--storage", "grpc://127.0.0.1:1", "--root", root)
    assert code == MISSING
    assert err.endswith("--storage grpc://127.0.0.1:1: needs grpc; pip install 'bakeoff[grpc]'\n")
