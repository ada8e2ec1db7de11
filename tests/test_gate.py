"""The regression gate: it fails where the whole interval says so, and nowhere else."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic import write_comparison

from reports.gate import decide, parse
from reports.load import ReportError, load


def gates(root, expression, name="demo"):
    comparison = load(root, name)
    return decide(parse(expression, comparison), comparison)


def scored(root, label, scores):
    """Give the runs of an arm these scores on the test split."""
    for seed, score in enumerate(scores):
        path = next((root / "runs").glob(f"*-{label}-tiny-s{seed}-*")) / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[-1]["test/pass@1"] = score
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("gate")
    write_comparison(root, arms=("base", "sft", "grpo"), seeds=3)
    scored(root, "sft", [0.50, 0.52, 0.51])
    scored(root, "grpo", [0.40, 0.41, 0.42])
    scored(root, "base", [0.30, 0.50, 0.40])
    return root


@pytest.fixture
def root(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "root"))


@pytest.mark.parametrize(
    ("expression", "failed"),
    [
        ("grpo.pass@1 < sft.pass@1", True),
        ("sft.pass@1 > grpo.pass@1", True),
        ("grpo.test/pass@1 <= sft.pass@1", True),
        ("grpo.pass@1 > sft.pass@1", False),
        ("sft.pass@1 <= grpo.pass@1", False),
        ("grpo.pass@1 < base.pass@1", False),  # not distinguishable, in either direction
        ("grpo.pass@1 > base.pass@1", False),
        ("grpo.pass@1 < 0.5", True),
        ("0.5 > grpo.pass@1", True),
        ("0.45 < sft.pass@1", True),
        ("grpo.pass@1 < 0.41", False),
        ("grpo.pass@1 < grpo.pass@1", False),
        ("grpo.pass@1 <= grpo.pass@1", True),
    ],
)
def test_a_gate_fails_only_where_the_whole_interval_is_on_that_side(root, expression, failed):
    (decision,) = gates(root, expression)
    assert decision.failed is failed
    assert ("FAILED" in decision.text) is failed
    assert "3 seeds" in decision.text


def test_the_interval_is_the_paired_one_over_seeds(root):
    (decision,) = gates(root, "grpo.pass@1 < sft.pass@1")
    assert decision.difference.mean == pytest.approx(-0.1)
    assert decision.difference.high == pytest.approx(-0.1 + 4.302653 * 0.01 / 3**0.5, abs=1e-6)


def test_a_gate_whose_runs_are_missing_does_not_pass_unchecked(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2, states={("sft", 1): "failed"})
    (decision,) = gates(tmp_path, "sft.pass@1 < base.pass@1")
    assert decision.failed
    assert "it cannot be checked" in decision.text
    assert "1 run failed or to go" in decision.text


def test_a_gate_decides_on_what_is_there_and_says_what_is_not(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=4, states={("sft", 3): "failed"})
    (decision,) = gates(tmp_path, "sft.pass@1 < base.pass@1")
    assert not decision.failed
    assert "3 seeds, 1 run failed or to go" in decision.text


def test_one_seed_has_no_interval_and_fails_no_gate(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    (decision,) = gates(tmp_path, "base.pass@1 < sft.pass@1")
    assert not decision.failed
    assert "too few for an interval" in decision.text


def test_every_task_is_decided_apart(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), tasks=("arithmetic", "people"))
    assert [d.task for d in gates(tmp_path, "base.pass@1 < sft.pass@1")] == ["arithmetic", "people"]


def test_the_longest_label_is_the_arm(tmp_path):
    write_comparison(tmp_path, arms=("grpo", "sft"), seeds=2)
    for path in (tmp_path / "runs").glob("*-sft-*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"label": "grpo.2"}))
    gate = parse("grpo.2.pass@1 < grpo.pass@1", load(tmp_path, "demo"))
    assert (gate.left.arm, gate.right.arm) == ("grpo.2", "grpo")


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "not ARM.METRIC"),
        ("grpo.pass@1", "not ARM.METRIC"),
        ("grpo.pass@1 == sft.pass@1", "not ARM.METRIC"),
        ("grpo.pass@1 < sft.pass@1 < 1", "not ARM.METRIC"),
        ("gpro.pass@1 < 0.5", "did you mean 'grpo'"),
        ("grpo < 0.5", "no arm in 'grpo'"),
        ("grpo.pass@2 < 0.5", "did you mean 'pass@1'"),
        ("grpo.pass@1 < nan", "not a finite number"),
        ("1 < 2", "names no arm"),
    ],
)
def test_an_expression_that_cannot_be_decided_is_one_line(root, expression, said):
    with pytest.raises(ReportError, match="--fail-if") as caught:
        gates(root, expression)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_exits_with_5_where_a_gate_fails(cli, root):
    arguments = ("report", "demo", "--root", root, "-o", root / "page.html")
    code, out, _ = cli(*arguments, "--fail-if", "grpo.pass@1 > sft.pass@1")
    assert (code, out.count("gate ")) == (0, 1)
    code, out, _ = cli(*arguments, "--fail-if", "grpo.pass@1 > sft.pass@1", "--fail-if", "grpo.pass@1 < sft.pass@1")
    assert (code, out.count("gate "), out.count("FAILED")) == (5, 2, 1)
    code, out, _ = cli(*arguments, "--json", "--fail-if", "grpo.pass@1 < sft.pass@1")
    assert code == 5
    assert [(gate["gate"], gate["failed"]) for gate in json.loads(out)["gates"]] == [("grpo.pass@1 < sft.pass@1", True)]


def test_a_gate_that_cannot_be_read_is_refused_before_a_report_is_written(cli, root):
    code, out, err = cli("report", "demo", "--root", root, "-o", root / "page.html", "--fail-if", "gpro.pass@1 < 1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (root / "page.html").exists()
