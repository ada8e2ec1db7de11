"""A small search, and processes that share its trials without training."""

import os
import subprocess
import sys

from optuna.trial import TrialState

from harness.search import Search
from harness.study import StudyOf, open_storage
from tests.conftest import REPOSITORY

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


def loaded(tmp_path, text):
    path = tmp_path / "asked.toml"
    path.write_text(text)
    return Search.load(path)


def opened(search, folder, url=None, identity=None):
    return StudyOf(search, "sft", identity or {"a": 1}, open_storage(url, folder), folder)


def told(study, values=None):
    claim = study.claim()
    study.tell(claim, TrialState.COMPLETE, [values(claim.drawn) if values else 0.5], {}, {})
    claim.held.__exit__(None, None, None)
    return claim


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
