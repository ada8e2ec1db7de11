"""What a user meets when something is wrong: one line that says what and where, an exit code, and nothing on disk."""

import json
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from conftest import SMOKE, bakeoff, environment, start, tree, until

from harness.errors import MISSING, USAGE

ARMS = tomllib.loads(SMOKE.read_text())["methods"]
EMPTY_TASK = """
from harness.task import Task, Verdict
from tasks import arithmetic

def problems(split):
    return [] if split == "validation" else arithmetic.TASK.problems(split)

EMPTY = Task("empty", "nothing to validate on", problems, lambda p, c: Verdict(0.0), 0.0, 8)
"""
REFUSED = {
    "key": (["modles=[1]"], USAGE, ["modles", "did you mean 'models'"]),
    "key of the budget": (["budget.flop=1e9"], USAGE, ["budget.flop", "did you mean 'flops'"]),
    "key of the evaluation": (["evaluation.test_problem=3"], USAGE, ["evaluation.test_problem", "did you mean 'test_problems'"]),
    "option": (["methods.grpo.bta=0.1"], USAGE, ["methods.grpo", "bta", "did you mean 'beta'"]),
    "option in another method": (["methods.sft.clip=0.2"], USAGE, ["methods.sft", "clip"]),
    "method": (["methods.grpo.method=gpro"], USAGE, ["methods.grpo.method", "'gpro'", "did you mean 'grpo'"]),
    "method of no name": (["methods.new.lr=1.0"], USAGE, ["methods.new", "ppo, sft"]),
    "method that is a number": (["methods.grpo.method=3"], USAGE, ["methods.grpo.method", "3"]),
    "method in no module": (["methods.grpo.method=nowhere:X"], USAGE, ["methods.grpo.method", "nowhere:X"]),
    "method in a module of no name": (["methods.grpo.method=:X"], USAGE, ["methods.grpo.method", ":X"]),
    "method that is a function": (["methods.grpo.method=json:dumps"], USAGE, ["methods.grpo.method", "json:dumps", "Method"]),
    "label": (["methods.GRPO.method=grpo"], USAGE, ["methods.GRPO", "lower case"]),
    "task": (['tasks=["arithmetc"]'], USAGE, ["tasks", "did you mean 'arithmetic'"]),
    "task to forget": (['evaluation.other_tasks=["knight"]'], USAGE, ["did you mean 'knights'"]),
    "task that is a module": (['tasks=["os:path"]'], USAGE, ["tasks", "os:path", "Task"]),
    "task in a module of no name": (['tasks=[":X"]'], USAGE, ["tasks", ":X"]),
    "model": (['models=["smokey"]'], MISSING, ["smokey", "did you mean 'smoke'"]),
    "budget below zero": (["budget.flops=-1"], USAGE, ["budget.flops", "greater than 0", "-1"]),
    "budget without end": (["budget.flops=inf"], USAGE, ["budget.flops", "inf"]),
    "budget without a limit": (["budget={}"], USAGE, ["budget", "flops"]),
    "points of zero": (["evaluation.points=0"], USAGE, ["evaluation.points", "greater than or equal to 1"]),
    "group of one": (["methods.grpo.group=1"], USAGE, ["methods.grpo", "group", "greater than or equal to 2"]),
    "text for a number": (["methods.grpo.lr=fast"], USAGE, ["methods.grpo", "lr", "number", "'fast'"]),
    "half a prompt": (["methods.grpo.prompts=2.5"], USAGE, ["methods.grpo", "prompts", "integer"]),
    "number for a list": (["seeds=3"], USAGE, ["seeds", "3"]),
    "no seeds": (["seeds=[]"], USAGE, ["seeds", "at least 1"]),
    "a seed twice": (["seeds=[0,0]"], USAGE, ["seeds", "0"]),
    "a task twice": (['tasks=["knights","knights"]'], USAGE, ["tasks", "knights"]),
    "number for a table": (["evaluation=3"], USAGE, ["evaluation", "3"]),
    "name that is a number": (["name=3"], USAGE, ["name", "3"]),
    "name that climbs": (["name=../x"], USAGE, ["name", "../x", "lower case"]),
    "device": (["device=gpu"], USAGE, ["device", "'cuda'", "'gpu'"]),
    "override without a value": (["seeds"], USAGE, ["'seeds'", "KEY=VALUE"]),
    "override without a key": (["=3"], USAGE, ["'=3'", "KEY=VALUE"]),
    "override into a value": (["seeds.first=3"], USAGE, ["seeds.first=3", "seeds is a value"]),
}
MISUSED = {
    "command": (["rnu"], ["rnu", "run"]),
    "option": (["run", str(SMOKE), "--dryrun"], ["--dryrun"]),
    "value of an option": (["run", str(SMOKE), "--workers", "-1"], ["workers"]),
    "missing argument": (["run"], ["sweep"]),
    "thing to list": (["list", "method"], ["method", "methods"]),
    "preset": (["pretrain", "smokey"], ["smokey", "did you mean 'smoke'"]),
}
FILES = {
    "broken": ("[methods\n", USAGE, ["not valid TOML", "line 1"]),
    "empty": ("", USAGE, ["question"]),
    "bare": (
        'question = "?"\ntasks = ["knights"]\nmodels = ["smoke"]\nseeds = [0]\n[methods.sft]\nmethod = "sft"',
        USAGE,
        ["budget"],
    ),
    "methodless": (
        'question = "?"\ntasks = ["knights"]\nmodels = ["smoke"]\nseeds = [0]\nbudget = { steps = 1 }\nmethods = {}',
        USAGE,
        ["methods"],
    ),
}


def refused(result, code, words, root):
    status, out, err = result
    assert err.startswith("bakeoff: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert [word for word in words if word not in err] == [], err
    assert status == code
    assert out == ""
    assert not root.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_cannot_run_is_refused_in_one_line(cli, tmp_path, case):
    overrides, code, words = REFUSED[case]
    refused(cli("run", SMOKE, *overrides, "--dry-run", "--root", tmp_path / "root"), code, words, tmp_path / "root")


@pytest.mark.parametrize("case", MISUSED)
def test_a_command_that_does_not_exist_as_written_is_refused_in_one_line(cli, tmp_path, monkeypatch, case):
    arguments, words = MISUSED[case]
    monkeypatch.setenv("BAKEOFF_ROOT", str(tmp_path / "root"))
    refused(cli(*arguments), USAGE, words, tmp_path / "root")


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_comparison_is_refused_by_name(cli, tmp_path, case):
    text, code, words = FILES[case]
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    refused(cli("run", path, "--root", tmp_path / "root"), code, [str(path), *words], tmp_path / "root")


def test_a_comparison_that_is_not_there_is_refused_with_the_nearest_that_is(cli, tmp_path):
    words = ["smok.toml", "no such file", "did you mean", "smoke.toml"]
    refused(cli("run", SMOKE.with_name("smok.toml"), "--root", tmp_path / "root"), MISSING, words, tmp_path / "root")
    refused(cli("run", tmp_path, "--root", tmp_path / "root"), MISSING, [str(tmp_path), "cannot be read"], tmp_path / "root")


def test_a_task_with_an_empty_split_is_refused(cli, tmp_path, monkeypatch):
    (tmp_path / "emptytask.py").write_text(EMPTY_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    result = cli("run", SMOKE, 'tasks=["emptytask:EMPTY"]', "--root", tmp_path / "root")
    refused(result, USAGE, ["tasks", "emptytask:EMPTY", "validation"], tmp_path / "root")


def test_a_folder_without_a_model_in_it_is_refused(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    result = cli("run", SMOKE, f'models=["{tmp_path / "folder"}"]', "--root", tmp_path / "root")
    refused(result, MISSING, [str(tmp_path / "folder"), "config.json"], tmp_path / "root")


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "no EOS"])
def test_a_folder_that_is_no_causal_language_model_is_refused_before_anything_runs(cli, tmp_path, kind):
    from test_models import save_bert, save_llama, save_t5

    save = {"encoder": save_bert, "encoder-decoder": save_t5, "no EOS": lambda folder: save_llama(folder, eos_token=None)}[kind]
    words = ["EOS"] if kind == "no EOS" else ["causal"]
    folder = save(tmp_path / "model")
    result = cli("run", SMOKE, f'models=["{folder}"]', "--dry-run", "--root", tmp_path / "root")
    refused(result, MISSING, [str(folder), *words], tmp_path / "root")


def test_a_root_that_is_a_file_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = cli("run", SMOKE, "--root", tmp_path / "file")
    assert (code, out, err.count("\n")) == (USAGE, "", 1)
    assert str(tmp_path / "file") in err


def test_names_of_nothing_are_refused_with_the_nearest_there_is(cli, tmp_path):
    from harness import files

    refused(cli("report", "smoke", "--root", tmp_path / "root"), USAGE, ["smoke", "bakeoff run"], tmp_path / "root")
    refused(cli("samples", "x", "--root", tmp_path / "root"), USAGE, ["'x'", "no runs"], tmp_path / "root")
    files.write(tmp_path / "comparisons" / "first" / "runs.txt", "")
    files.write(tmp_path / "runs" / "arithmetic-sft-smoke-s0-12345678" / "config.json", "{}")
    before = tree(tmp_path)
    code, out, err = cli("report", "frist", "--root", tmp_path)
    assert (code, out, err) == (USAGE, "", "bakeoff: no comparison named 'frist' (did you mean 'first'?)\n")
    code, out, err = cli("samples", "arithmetic-sft-smoke-s0-1234567", "--root", tmp_path)
    assert (code, out, err.count("\n")) == (USAGE, "", 1)
    assert "did you mean 'arithmetic-sft-smoke-s0-12345678'" in err
    assert tree(tmp_path) == before


@pytest.mark.slow
def test_the_installed_command_refuses_like_this_process_does(tmp_path):
    end = bakeoff("run", SMOKE, "budget.flop=1", cwd=tmp_path)
    assert end.returncode == USAGE
    assert end.stderr == f"bakeoff: {SMOKE}: budget.flop: unknown key (did you mean 'flops'?)\n"
    assert end.stdout == ""
    end = bakeoff("rnu", cwd=tmp_path)
    assert end.returncode == USAGE
    assert (end.stderr.count("\n"), "Traceback" in end.stderr, "rnu" in end.stderr) == (1, False, True)
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch(tmp_path):
    script = "import sys\nfrom harness.cli import app\napp(['--help'], standalone_mode=False)\nsys.exit('torch' in sys.modules)"
    end = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert end.returncode == 0, end.stderr
    for command in ("run", "report", "pretrain", "list", "samples"):
        assert command in end.stdout


def test_a_dry_run_names_every_run_and_writes_nothing(cli, tmp_path):
    code, out, err = cli("run", SMOKE, "--dry-run", "--root", tmp_path / "root")
    assert (code, err) == (0, "")
    matrix, estimate = out.split("\n\n")
    assert [line.split()[:2] for line in matrix.splitlines()] == [["to", "go"]] * 2 * len(ARMS)
    assert estimate.startswith(f"{2 * len(ARMS)} runs, {2 * len(ARMS)} to go: ")
    code, out, _ = cli("run", SMOKE, "seeds=[3]", "--dry-run", "--json", "--root", tmp_path / "root")
    rows = json.loads(out)["runs"]
    assert [(row["run"].rsplit("-", 1)[0], row["done"]) for row in rows] == [
        (f"knights-{label}-smoke-s3", False) for label in ARMS
    ]
    assert not (tmp_path / "root").exists()


def test_a_second_process_on_a_comparison_is_refused_within_seconds_and_changes_nothing(cli, root):
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom harness import files\n"
        "with files.lock(Path(sys.argv[1]), 'running this comparison'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    lock = root / "comparisons" / "smoke" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = tree(root)
        started = time.monotonic()
        code, out, err = cli("run", SMOKE, "seeds=[7]", "--root", root)
        assert time.monotonic() - started < 10
        assert (code, out, err.count("\n")) == (USAGE, "", 1)
        assert f"process {holder.pid} is already running this comparison" in err
        assert tree(root) == before
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
def test_control_c_while_pretraining_says_so_and_leaves_no_base(tmp_path):
    process = start("pretrain", "dense", "--root", tmp_path / "root", cwd=tmp_path)
    until(lambda: list((tmp_path / "root" / "bases").glob("*.lock")), 60, "pretraining to start")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [p.suffix for p in (tmp_path / "root" / "bases").iterdir()] == [".lock"]
