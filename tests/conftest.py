"""What the tests of the harness share: a tiny base that is pretrained once, and the smoke comparison that is run once."""

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness import files
from harness.comparison import Comparison, Evaluation
from harness.meter import CLOCK, Budget

REPOSITORY = Path(__file__).parent.parent
CANARY = "canary-7d1f0c"
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "DATABASE_PASSWORD", "SOME_SECRET")
SMOKE = REPOSITORY / "sweeps" / "smoke.toml"
COMMAND = Path(sys.executable).with_name("bakeoff")
SMALL = Evaluation(points=2, validation_problems=4, validation_samples=1, test_problems=0, ood_problems=0, other_tasks=())


gc.disable()  # imports make half a million objects that stay: to look through them again and again takes seconds


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine():
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("WANDB_MODE", "offline")
        environ.delenv("BAKEOFF_ROOT", raising=False)
        yield


def environment(**changes):
    kept = {k: v for k, v in os.environ.items() if k != "BAKEOFF_ROOT"}
    return {**kept, "WANDB_MODE": "offline", **{k: str(v) for k, v in changes.items()}}


def start(*args, cwd, **changes):
    """The real command, in a process group of its own."""
    return subprocess.Popen(
        [COMMAND, *map(str, args)],
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def bakeoff(*args, cwd, **changes):
    process = start(*args, cwd=cwd, **changes)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line in this process: (exit code, stdout, stderr)."""
    from harness.cli import main

    def call(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["bakeoff", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


def new_bases(root, hurry=1):
    """The smoke base and its teacher, in so many times fewer steps than their recipes say."""
    import torch

    from harness import models
    from harness.pretrain import pretrain

    torch.set_num_threads(1)
    for name, start in (("smoke", None), ("smoke-teacher", models.location("smoke", root))):
        recipe = models.presets()[name]
        pretrain(replace(recipe, steps=recipe.steps // hurry), models.location(name, root), lambda *_: None, start)
    return root


@pytest.fixture
def search_file(tmp_path):
    """A search of two options of SFT on the smoke base, three trials of two seeds."""
    from tests.searches import SEARCH

    path = tmp_path / "small.toml"
    path.write_text(SEARCH)
    return path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A root that holds the smoke base and its teacher, and nothing else."""
    return new_bases(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="session")
def begun(tmp_path_factory):
    """The same of bases that know hardly more than which characters there are, for what need not wait for more."""
    return new_bases(tmp_path_factory.mktemp("begun"), hurry=10)


def new_root(pretrained, folder):
    shutil.copytree(pretrained / "bases", folder / "bases")
    return folder


@pytest.fixture(scope="module")
def llama():
    """A policy of seven tokens with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.policy import Policy

    torch.manual_seed(0)
    sizes = {"vocab_size": 7, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Policy(LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=None, eos_token_id=1)))


@pytest.fixture
def root(request, tmp_path):
    """A root of the test's own with both bases; they have only begun to learn where the test is of the fast part."""
    learned = request.getfixturevalue("pretrained" if request.node.get_closest_marker("slow") else "begun")
    return new_root(learned, tmp_path / "root")


@dataclass
class Smoke:
    root: Path
    cwd: Path
    process: subprocess.CompletedProcess

    @property
    def runs(self):
        return {config["label"] + f"-s{config['seed']}": p.parent for p, config in self.configs()}

    def configs(self):
        return [(p, files.read_json(p)) for p in sorted((self.root / "runs").glob("*/config.json"))]


@pytest.fixture(scope="session")
def smoke(pretrained, tmp_path_factory):
    """The smoke comparison, run by the command line from a directory that is not its root."""
    root, cwd = new_root(pretrained, tmp_path_factory.mktemp("smoke") / "kept here"), tmp_path_factory.mktemp("elsewhere")
    secrets = dict.fromkeys(SECRETS, CANARY)
    return Smoke(root, cwd, bakeoff("run", SMOKE, "device=cpu", "--workers", 2, "--root", root, cwd=cwd, **secrets))


def config_of(
    root, method="sft", steps=6, label="arm", evaluation=SMALL, model="smoke", task="knights", seed=0, budget=None, **options
):
    """The RunConfig of one small run."""
    comparison = Comparison(
        name="one",
        question="?",
        methods={label: {"method": method, **options}},
        tasks=(task,),
        models=(str(model),),
        seeds=(seed,),
        budget=budget or Budget(steps=steps),
        evaluation=evaluation,
        device="cpu",
    )
    return comparison.runs(root)[0]


SFT = {"method": "sft", "lr": 3e-3, "prompts": 4}
LEARNED = {"share": 0.3, "sets": 32, "reward_lr": 1e-3}
METHODS = {
    "sft": {"method": "sft", "lr": 3e-3, "prompts": 4, "beta": 0.1},
    "rejection": {"method": "sft", "source": "start", "lr": 1e-3, "prompts": 16, "group": 8},
    "rejection-online": {"method": "sft", "source": "policy", "lr": 1e-3, "prompts": 16, "group": 8},
    "distill-data": {"method": "distill", "teacher": "smoke-teacher", "lr": 1e-3, "prompts": 32, "group": 4},
    "distill-soft": {"method": "distill", "targets": "soft", "teacher": "smoke-teacher", "lr": 1e-3, "prompts": 16},
    "distill-own": {"method": "distill", "targets": "own", "teacher": "smoke-teacher", "lr": 1e-3, "prompts": 16},
    "dpo": {"method": "dpo", "lr": 1e-3, "prompts": 16},
    "dpo-online": {"method": "dpo", "source": "policy", "lr": 1e-3, "prompts": 16},
    "ppo": {"method": "ppo", "lr": 1e-3, "critic_lr": 1e-3, "prompts": 16, "epochs": 2, "minibatches": 2, **LEARNED},
    "ppo-verifier": {"method": "ppo", "source": "verifier", "lr": 1e-3, "critic_lr": 1e-3, "prompts": 16},
    "grpo": {"method": "grpo", "lr": 1e-3, "prompts": 8, "group": 4, "beta": 0.02, "source": "random"},
}
GRPO = {"method": "grpo", "lr": 1e-3, "prompts": 2, "group": 2, "beta": 0.02, "source": "random"}


def open_run(config, root, folder):
    from harness.run import Run
    from harness.tracker import NoTracker

    return Run(config, root, folder, NoTracker())


def numbers(folder):
    """The rows of metrics.jsonl without the columns that a clock or the machine's memory decides."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in files.read_jsonl(folder / "metrics.jsonl")]


def tree(folder):
    """Every file below a folder, and the hash of what is in it."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
