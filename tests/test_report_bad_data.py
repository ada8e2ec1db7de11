"""Data that is missing, single, flat, no number or torn: the page says so, and invents no interval."""

import json

import pytest
from synthetic import write_comparison

from reports.html import render
from reports.leaderboard import leaderboards
from reports.load import load
from reports.notices import notices
from reports.tally import tally


def noticed(root):
    """The notices, all of which the page shows."""
    comparison = load(root, "demo")
    found = notices(comparison, leaderboards(comparison), {run.id: tally(run) for run in comparison.runs if run.done})
    page = render(root, "demo")
    for notice in found:
        assert notice.replace("'", "&#39;") in page
    return found


def edited(root, identity, edit):
    path = root / "runs" / identity / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_whole_runs_need_no_notice(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2, problems=4)
    assert noticed(tmp_path) == []
    assert "Before you trust a number" not in render(tmp_path, "demo")


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1, problems=4)
    (notice,) = noticed(tmp_path)
    assert notice.startswith("One finished seed, so no interval")
    page = render(tmp_path, "demo")
    assert "1 seed, no interval" in page
    assert "±" not in page.split('class="leaderboard"')[1].split("</table>")[0]
    assert "95% CI" not in page.split("<main>")[1].split("</h1>")[0]


def test_a_seed_that_the_base_lacks_is_named(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=3, states={("base", 1): "failed"}, problems=4)
    assert "sft has seed 1 without a base to compare to; Δ leaves them out." in noticed(tmp_path)


def test_an_arm_that_failed_on_every_seed_is_named(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2, states={("sft", 0): "failed", ("sft", 1): "missing"}, problems=4)
    assert "No score of sft: 1 failed, 1 to go." in noticed(tmp_path)


def test_scores_that_are_all_equal_are_no_certainty(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "sft"), seeds=3, problems=4)
    for identity in identities:
        edited(tmp_path, identity, lambda rows: rows[-1].update({"test/pass@1": 0.5}))
    found = noticed(tmp_path)
    assert len(found) == 2
    assert all("no width because nothing varied" in notice for notice in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_counted_and_left_out(tmp_path, value):
    identities = write_comparison(tmp_path, arms=("base", "grpo"), seeds=2, problems=4)
    edited(tmp_path, identities[2], lambda rows: rows[5].update({"loss": value, "reward": value}))
    found = noticed(tmp_path)
    assert f"{identities[2]}: `loss` is NaN or infinite on 1 line, left out." in found
    assert f"{identities[2]}: `reward` is NaN or infinite on 1 line, left out." in found
    assert load(tmp_path, "demo").runs[2].done


def test_a_headline_that_is_no_number_is_no_result(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "grpo"), seeds=2, problems=4)
    edited(tmp_path, identities[2], lambda rows: rows[-1].update({"test/pass@1": float("nan")}))
    assert [run.status for run in load(tmp_path, "demo").runs] == ["done", "done", "unfinished", "done"]
    assert "holds no test/pass@1" in render(tmp_path, "demo")


def test_no_problems_are_a_notice_and_no_figure(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2, problems=0)
    found = noticed(tmp_path)
    assert len(found) == 4
    assert all("no completion of a held-out problem was kept" in notice for notice in found)
    page = render(tmp_path, "demo")
    for title in ("Length by correctness", "Why answers are wrong", "More samples", "side by side"):
        assert title not in page


def test_a_line_that_is_broken_inside_an_evaluation_is_named(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "sft"), seeds=3, problems=4)
    path = next((tmp_path / "runs" / identities[3] / "evals").glob("*-test.jsonl"))
    path.write_text('{"problem": "p1", "rew\n' + path.read_text())
    (notice,) = noticed(tmp_path)
    assert notice.startswith(f"{identities[3]}: line 1 is not JSON")


def test_half_a_last_line_is_what_a_killed_writer_leaves(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "sft"), seeds=2, problems=4)
    before = render(tmp_path, "demo")
    for path in [
        *(tmp_path / "runs" / identities[2]).glob("metrics.jsonl"),
        *(tmp_path / "runs" / identities[2] / "evals").iterdir(),
    ]:
        path.write_text(path.read_text() + '{"problem": "p0')
    assert render(tmp_path, "demo") == before


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_task_on_which_every_arm_is_equally_right_is_drawn(tmp_path, score):
    for identity in write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=2, problems=4):
        edited(tmp_path, identity, lambda rows: [row.update({k: score for k in row if k.endswith("pass@1")}) for row in rows])
        for path in (tmp_path / "runs" / identity / "evals").glob("*.jsonl"):
            lines = [json.loads(line) | {"reward": score} for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Learning curves" in render(tmp_path, "demo")


def test_the_captions_say_on_which_split_arms_were_scored_and_on_how_many_seeds(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=3, problems=4)
    page = render(tmp_path, "demo")
    assert "on the test split of arithmetic" in page
    assert page.count("3 finished seeds") >= 3
