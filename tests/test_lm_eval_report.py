"""What lm-eval found, in the report; and the command where lm-eval is not installed."""

import json

import pytest
from synthetic import write_comparison

from harness.errors import MISSING
from reports.html import _environment
from reports.load import load
from reports.looks import looks
from reports.stats import t_interval
from reports.stock import stock


def said(problems, verdicts=None, **scores):
    told = {"problems": problems, "scores": {name: {"score": score, "stderr": None} for name, score in scores.items()}}
    return told | ({} if verdicts is None else {"verdicts": verdicts})


def write(root, identity, **tasks):
    (root / "runs" / identity / "lm_eval.json").write_text(json.dumps(tasks))


def own(root, identity):
    """The greedy verdicts of a run's own test."""
    (path,) = (root / "runs" / identity / "evals").glob("*-test.jsonl")
    rows = map(json.loads, path.read_text().splitlines())
    return {row["problem"]: float(row["reward"] == 1.0) for row in rows if row["greedy"]}


def page(root):
    comparison = load(root, "demo")
    template = _environment().get_template("stock.html.j2")
    return template.render(stock=stock(comparison), looks=looks(comparison))


def test_without_lm_eval_there_is_nothing_to_show(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=2)
    assert stock(load(tmp_path, "demo")) is None


def test_scores_are_over_seeds_and_verdicts_are_held_against_the_runs_own(tmp_path):
    first, second, third, *_ = write_comparison(tmp_path, arms=("grpo", "base"), seeds=3)
    right = own(tmp_path, first)
    flipped = own(tmp_path, second)
    problem = next(iter(flipped))
    flipped[problem] = 1 - flipped[problem]
    write(tmp_path, first, arithmetic=said(200, {**right, "elsewhere": 1.0}, greedy=0.5), mmlu=said(40, acc=0.25))
    write(tmp_path, second, arithmetic=said(100, flipped, greedy=0.7))
    found = stock(load(tmp_path, "demo"))
    assert [(s.asked, s.metric, s.arm) for s in found.scores] == [("arithmetic", "greedy", "grpo"), ("mmlu", "acc", "grpo")]
    arithmetic, mmlu = found.scores
    assert arithmetic.interval == t_interval([0.5, 0.7])
    assert arithmetic.problems == "100 to 200 problems"
    assert (arithmetic.compared, arithmetic.agreed) == (2 * len(right), 2 * len(right) - 1)
    assert (found.compared, found.agreed) == (arithmetic.compared, arithmetic.agreed)
    assert (mmlu.interval.n, mmlu.interval.mean, mmlu.compared) == (1, 0.25, 0)
    html = page(tmp_path)
    assert f"{arithmetic.agreed} of {arithmetic.compared}" in html
    assert "mmlu,acc,arithmetic,tiny,grpo,0.25,,,1,40 problems,0,0\n" in html
    assert third not in html


def test_verdicts_on_a_task_that_the_run_was_not_tested_on_are_not_compared(tmp_path):
    (identity,) = write_comparison(tmp_path, arms=("base",), seeds=1)
    write(tmp_path, identity, knights=said(5, own(tmp_path, identity), greedy=0.5))
    assert stock(load(tmp_path, "demo")).compared == 0


@pytest.mark.parametrize("broken", ["{", "[]", '{"arithmetic": 3}', '{"arithmetic": {"problems": 3, "scores": {"greedy": 1}}}'])
def test_a_broken_file_is_a_notice(tmp_path, broken):
    first, second = write_comparison(tmp_path, arms=("base",), seeds=2)
    write(tmp_path, first, arithmetic=said(3, {}, greedy=0.5))
    (tmp_path / "runs" / second / "lm_eval.json").write_text(broken)
    found = stock(load(tmp_path, "demo"))
    assert [score.interval.n for score in found.scores] == [1]
    assert len(found.notices) == 1
    assert found.notices[0].startswith(f"{second}/lm_eval.json: ")
    assert second in page(tmp_path)


def test_what_a_task_is_called_is_text(tmp_path):
    (identity,) = write_comparison(tmp_path, arms=("base",), seeds=1)
    write(tmp_path, identity, **{"<script>alert(1)</script>": said(3, **{"<b>": 0.5})})
    html = page(tmp_path)
    assert "<script" not in html
    assert "&lt;b&gt;" in html


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, cli):
    monkeypatch.setattr("harness.cli.compute.find_spec", lambda _: None)
    code, out, err = cli("lm-eval", "dense", "--tasks", "arithmetic")
    assert (code, out) == (MISSING, "")
    assert err == "bakeoff: lm-eval is not installed; pip install 'bakeoff[lm-eval]'\n"
