"""A comparison's folders as the report reads them: what is torn, missing, broken or started elsewhere."""

import json
import re

import pytest
from synthetic import STARTS, TROUBLE, write_comparison

from reports.finding import finding
from reports.html import render
from reports.leaderboard import leaderboards, records
from reports.load import ReportError, load
from reports.provenance import settings


def test_runs_that_did_not_end_are_counted_and_named_never_dropped(tmp_path):
    identities = write_comparison(tmp_path, states=TROUBLE)
    comparison = load(tmp_path, "demo")
    assert [run.id for run in comparison.runs] == identities
    assert {s: comparison.count(s) for s in ("done", "failed", "unfinished", "missing")} == {
        "done": 18,
        "failed": 1,
        "unfinished": 1,
        "missing": 1,
    }
    rows = {row["arm"]: row for row in records(leaderboards(comparison)[0].frame)}
    assert (rows["dpo"]["done"], rows["dpo"]["asked"], rows["dpo"]["failed"]) == (2, 3, 1)
    assert (rows["ppo"]["done"], rows["ppo"]["asked"], rows["ppo"]["absent"]) == (2, 3, 1)
    page = render(tmp_path, "demo")
    for run in comparison.runs:
        assert run.id in page
    assert "FloatingPointError: loss is nan" in page
    assert "neither DONE nor FAILED" in page
    assert "no run directory" in page


def test_a_missing_run_that_may_belong_to_two_arms_is_given_to_neither(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=2)
    config = next((tmp_path / "runs").glob("*-grpo-*-s1-*")) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"label": "grpo-other"}))
    runs = tmp_path / "comparisons" / "demo" / "runs.txt"
    runs.write_text(runs.read_text() + "arithmetic-grpo-tiny-s2-00000000\n")
    rows = {row["arm"]: row for row in leaderboards(load(tmp_path, "demo"))[0].frame.to_dict("records")}
    assert [rows[arm]["asked"] for arm in ("grpo", "grpo-other", "grpo (?)")] == [1, 1, 1]
    assert "1 of 5 runs have not finished" in finding(leaderboards(load(tmp_path, "demo")))


def test_a_torn_last_line_is_ignored_and_a_broken_one_inside_is_named(tmp_path):
    (identity, *_) = write_comparison(tmp_path, arms=("base", "grpo"), seeds=1)
    metrics = tmp_path / "runs" / identity / "metrics.jsonl"
    whole = metrics.read_text()
    before = load(tmp_path, "demo").runs[0].metrics
    metrics.write_text(whole + '{"step": 200, "los')
    assert load(tmp_path, "demo").runs[0].metrics.equals(before)
    metrics.write_text('{"step": 0, "los\n' + whole)
    run = load(tmp_path, "demo").runs[0]
    assert run.status == "failed"
    assert run.reason.startswith("metrics.jsonl cannot be read: line 1 is not JSON")
    assert "metrics.jsonl cannot be read: line 1 is not JSON" in render(tmp_path, "demo")


def test_steps_that_a_resumed_run_logged_twice_count_once(tmp_path):
    identity = write_comparison(tmp_path, arms=("base", "grpo"), seeds=1)[1]
    metrics = tmp_path / "runs" / identity / "metrics.jsonl"
    before = load(tmp_path, "demo").runs[1].metrics
    lines = metrics.read_text().split("\n")
    metrics.write_text("\n".join([*lines[:50], *lines[30:]]))
    assert load(tmp_path, "demo").runs[1].metrics.equals(before)


def test_a_line_separator_inside_a_completion_does_not_split_its_record(tmp_path):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1, problems=1)[0]
    file = next((tmp_path / "runs" / identity / "evals").glob("*-test.jsonl"))
    file.write_text(json.dumps({"problem": "p", "completion": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", "utf-8")
    assert load(tmp_path, "demo").runs[0].evaluation("test")[0]["completion"] == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("comparisons/demo/comparison.toml", "question = ", "not TOML"),
        ("comparisons/demo/comparison.toml", None, "missing"),
        ("comparisons/demo/runs.txt", None, "missing"),
        ("comparisons/demo/runs.txt", "", "lists no run"),
        ("comparisons/demo/runs.txt", "../../etc\n", "not a run id"),
        ("runs/{run}/config.json", "{", "not JSON"),
        ("runs/{run}/config.json", "{}", "no `label`"),
        ("runs/{run}/config.json", "[]", "not a JSON object"),
        ("runs/{run}/card.json", "clip: none", "not JSON"),
        ("runs/{run}/card.json", '["clip"]', "not a JSON object"),
    ],
)
def test_a_broken_folder_is_one_error_that_names_the_file(tmp_path, file, content, said):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1)[0]
    path = tmp_path / file.format(run=identity)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ReportError, match=re.escape(path.name)) as caught:
        load(tmp_path, "demo")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"loss": 1}\n', "no whole number under `step`"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"step": 1}{}\n', "not JSON"),
    ],
)
def test_metrics_that_cannot_be_read_are_a_failed_run_with_its_reason(tmp_path, content, said):
    identities = write_comparison(tmp_path, arms=("base", "sft"), seeds=2)
    (tmp_path / "runs" / identities[2] / "metrics.jsonl").write_text(content)
    runs = load(tmp_path, "demo").runs
    assert [run.status for run in runs] == ["done", "done", "failed", "done"]
    assert said in runs[2].reason
    assert "1 of 4 runs failed" in render(tmp_path, "demo")


@pytest.mark.parametrize("name", ["absent", "..", "a/b", ""])
def test_a_comparison_that_is_not_there_is_refused(tmp_path, name):
    write_comparison(tmp_path, arms=("base",), seeds=1)
    with pytest.raises(ReportError):
        load(tmp_path, name)


def test_a_done_run_without_a_test_score_is_not_taken_for_a_result(tmp_path):
    identity = write_comparison(tmp_path, arms=("base",), seeds=1)[0]
    (tmp_path / "runs" / identity / "metrics.jsonl").write_text('{"step": 0, "eval/pass@1": 0.2}\n')
    run = load(tmp_path, "demo").runs[0]
    assert run.status == "unfinished"
    assert "no test/pass@1" in run.reason


def test_a_staged_arm_names_the_arms_it_came_through(tmp_path, monkeypatch):
    monkeypatch.setitem(STARTS, "sft-dpo", "sft-grpo")
    write_comparison(tmp_path, arms=("base", "sft", "sft-grpo", "sft-dpo"), seeds=1)
    runs = load(tmp_path, "demo").runs
    assert [run.stages for run in runs] == [(), (), ("sft",), ("sft", "sft-grpo")]
    assert "starts from sft → sft-grpo" in render(tmp_path, "demo")
    assert "start" not in {row.key for row in settings(runs)[1]}


def test_a_start_outside_the_comparison_has_its_label_and_one_that_is_gone_its_id(tmp_path):
    first, second = write_comparison(tmp_path, arms=("sft", "sft-grpo"), seeds=1)
    (tmp_path / "comparisons" / "demo" / "runs.txt").write_text(second)
    assert load(tmp_path, "demo").runs[0].stages == ("sft",)
    (tmp_path / "runs" / first / "config.json").unlink()
    assert load(tmp_path, "demo").runs[0].stages == (first,)


def test_runs_that_start_from_each_other_do_not_hang_the_report(tmp_path):
    first, second = write_comparison(tmp_path, arms=("sft", "sft-grpo"), seeds=1)
    config = tmp_path / "runs" / first / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"start": second}))
    assert load(tmp_path, "demo").runs[1].stages == ("sft-grpo", "sft")
