"""An arm that starts from another arm's end: in what order, from which weights, against which reference, at what cost."""

import pytest
from conftest import SMALL, bakeoff, new_root, numbers, open_run

from harness.comparison import Comparison
from harness.errors import USAGE
from harness.meter import Budget
from harness.policy import checksum
from harness.train import Interrupted, train

pytestmark = pytest.mark.slow

SFT = {"method": "sft", "lr": 3e-3, "prompts": 4}


def staged(**starts):
    """Arms of SFT, each starting from the one that is named."""
    methods = {arm: SFT | ({"start": start} if start else {}) for arm, start in starts.items()}
    return Comparison(
        name="stages", question="?", methods=methods, tasks=("knights",), models=("smoke",), seeds=(0,),
        budget=Budget(steps=3), evaluation=SMALL, device="cpu",
    )  # fmt: skip


def finished(config, root):
    run = open_run(config, root, root / "runs" / config.id)
    train(config.build(), run)
    (run.folder / "DONE").touch()
    return run


@pytest.fixture(scope="module")
def chain(pretrained, tmp_path_factory):
    root = new_root(pretrained, tmp_path_factory.mktemp("chain"))
    return root, [finished(config, root) for config in staged(first="", second="first", third="second").runs(root)]


def test_a_stage_begins_with_the_weights_that_its_start_ended_with(chain):
    _, (first, second, third) = chain
    assert checksum(second.reference) == checksum(first.policy) != checksum(first.reference)
    assert checksum(third.reference) == checksum(second.policy)


def test_kl_at_evaluation_is_measured_from_the_base_in_every_stage(chain):
    _, runs = chain
    assert [checksum(run.base) for run in runs] == [checksum(runs[0].reference)] * 3
    first, second, _ = ([row["eval/kl"] for row in numbers(run.folder) if "eval/kl" in row] for run in runs)
    assert first[0] == 0
    assert second[0] > 0.01


def test_a_stage_pays_for_itself_and_says_what_came_before(chain):
    _, runs = chain
    rows = [numbers(run.folder) for run in runs]
    assert ["ancestors/flops" in row[0] for row in rows] == [False, True, True]
    assert rows[1][0]["ancestors/flops"] == rows[0][-1]["budget/flops"]
    assert rows[2][0]["ancestors/flops"] == rows[0][-1]["budget/flops"] + rows[1][-1]["budget/flops"]
    assert rows[1][0]["budget/flops"] == 0


def test_a_stage_that_was_interrupted_continues_to_the_same_numbers(chain):
    root, (_, second, _) = chain
    calls = iter([False, False])
    again = open_run(second.config, root, root / "again")
    with pytest.raises(Interrupted):
        train(second.config.build(), again, lambda: next(calls, True))
    train(second.config.build(), open_run(second.config, root, root / "again"))
    assert numbers(root / "again") == numbers(second.folder)


def test_the_start_is_part_of_the_identity_and_so_is_all_that_decides_it(pretrained, tmp_path):
    root = new_root(pretrained, tmp_path)
    alone, after = staged(a="", b="").runs(root)[1], staged(a="", b="a").runs(root)[1]
    other = staged(a="", b="a")
    other.methods["a"]["lr"] = 1e-3
    assert len({alone.id, after.id, other.runs(root)[1].id}) == 3
    assert after.start == staged(a="").runs(root)[0].id


def test_an_arm_may_be_written_before_the_one_that_it_starts_from():
    assert staged(c="b", b="a", a="").in_order() == ["a", "b", "c"]


SWEEP = """
question = "?"
tasks = ["knights"]
models = ["smoke"]
seeds = [0]
budget = { steps = 2 }
device = "cpu"
evaluation = { points = 1, validation_problems = 4, validation_samples = 1, test_problems = 4, ood_problems = 0 }
"""


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (
            "methods.b = { method = 'sft', start = 'sfd' }\nmethods.sft = { method = 'sft' }",
            ["methods.b.start", "did you mean 'sft'"],
        ),
        (
            "methods.a = { method = 'sft', start = 'b' }\nmethods.b = { method = 'sft', start = 'a' }",
            ["methods.a.start", "a circle"],
        ),
        ("methods.a = { method = 'sft', start = 'a' }", ["methods.a.start", "circle through a"]),
        ("methods.a = { method = 'sft', start = 3 }", ["methods.a.start", "3"]),
        ("methods.a = { method = 'distill', teacher = 'smoke-techer' }", ["methods.a", "did you mean 'smoke-teacher'"]),
    ],
)
def test_a_start_or_a_teacher_that_cannot_be_is_refused_by_name(cli, tmp_path, arms, words):
    (tmp_path / "bad.toml").write_text(SWEEP + arms)
    code, out, err = cli("run", tmp_path / "bad.toml", "--root", tmp_path / "root")
    assert code in (USAGE, 4)
    assert (out, err.count("\n")) == ("", 1)
    assert all(word in err for word in words), err
    assert not (tmp_path / "root").exists()


def test_a_teacher_with_another_tokenizer_is_refused(cli, pretrained, tmp_path):
    from transformers import AutoTokenizer

    root = new_root(pretrained, tmp_path / "root")
    teacher = tmp_path / "teacher"
    (base,) = [p for p in (root / "bases").iterdir() if p.name.startswith("smoke-teacher-")]
    base.rename(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(teacher)
    (tmp_path / "bad.toml").write_text(SWEEP + f"methods.a = {{ method = 'distill', teacher = '{teacher}' }}")
    code, out, err = cli("run", tmp_path / "bad.toml", "--root", root)
    assert (code, out, err.count("\n")) == (USAGE, "", 1)
    assert "methods.a" in err
    assert "different tokenizers" in err


def test_a_stage_whose_start_fails_fails_with_it_and_the_rest_goes_on(pretrained, tmp_path):
    root = new_root(pretrained, tmp_path / "root")
    (tmp_path / "mymethod.py").write_text(
        "from methods.sft import SFT\n\n\nclass Raises(SFT):\n    def batch(self, run):\n        raise ZeroDivisionError\n"
    )
    arms = """
methods.bad = { method = "mymethod:Raises" }
methods.after = { method = "sft", start = "bad" }
methods.sft = { method = "sft" }
"""
    (tmp_path / "fails.toml").write_text(SWEEP + arms)
    end = bakeoff("run", tmp_path / "fails.toml", "--no-wandb", "--root", root, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert end.returncode == 3
    assert "2 runs failed" in end.stderr
    folders = {p.name.split("-")[1]: p for p in (root / "runs").iterdir()}
    assert (folders["sft"] / "DONE").exists()
    assert "starts from failed" in (folders["after"] / "FAILED").read_text()


def test_a_method_is_one_file_found_by_its_module_and_name(pretrained, tmp_path, monkeypatch):
    """Adding a method: this file, and nothing else."""
    (tmp_path / "unlikely.py").write_text(
        "from dataclasses import dataclass\n\nfrom harness import ops\nfrom harness.method import Batch, Method\n\n\n"
        "@dataclass(kw_only=True)\nclass Unlikelihood(Method[Batch]):\n"
        "    data, reward, objective = 'worked solutions', 'none', 'E log π(y|x)'\n    lr: float = 1e-3\n    prompts: int = 4\n\n"
        "    def batch(self, run):\n        return run.encode(run.problems(self.prompts))\n\n"
        "    def loss(self, policy, batch):\n        return ops.mean(policy.logp(batch.tokens_BT), batch.mask_BT), {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    root = new_root(pretrained, tmp_path / "root")
    comparison = staged(a="")
    comparison.methods["a"] = {"method": "unlikely:Unlikelihood", "prompts": 2}
    run = finished(comparison.runs(root)[0], root)
    losses = [row["loss"] for row in numbers(run.folder) if "loss" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
