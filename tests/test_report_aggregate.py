"""Arms over several tasks: who takes part, what is said of them, and where there is nothing to say."""

import re

import pytest
from synthetic import write_comparison

from reports.aggregate import aggregates
from reports.html import render
from reports.leaderboard import leaderboards
from reports.load import load
from reports.looks import looks
from reports.stats import improvement, iqm

TASKS = ("arithmetic", "knights")


def shown(root):
    comparison = load(root, "demo")
    boards = leaderboards(comparison)
    return boards, aggregates(comparison, boards, looks(comparison))


def test_one_task_has_no_aggregate(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2)
    assert shown(tmp_path)[1] == []
    assert 'id="aggregates"' not in render(tmp_path, "demo")


def test_every_arm_is_aggregated_over_its_seeds_and_all_tasks(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=3, tasks=TASKS)
    boards, (found,) = shown(tmp_path)
    scores = {
        arm: [[board.frame.set_index("arm").loc[arm, "scores"][seed] for board in boards] for seed in range(3)]
        for arm in ("base", "sft", "grpo")
    }
    for row in found.rows:
        assert row.n == 3
        assert row.iqm.mean == pytest.approx(iqm(scores[row.arm]))
        assert row.iqm.low <= row.iqm.mean <= row.iqm.high
        assert (row.better is None) == (row.arm == "base")
        if row.better:
            assert row.better.mean == pytest.approx(improvement(scores[row.arm], scores["base"]))
    assert [row.arm for row in found.rows][-1] == "base"
    assert {line.label for line in found.profile.plots[0].lines} == set(scores)


def test_seeds_that_a_task_lacks_are_left_out_and_an_arm_without_any_is_named(tmp_path):
    lost = {("sft", 0): "failed", ("grpo", 0): "failed", ("grpo", 1): "failed", ("grpo", 2): "failed"}
    write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=3, tasks=TASKS, states=lost)
    _, (found,) = shown(tmp_path)
    assert {row.arm: row.n for row in found.rows} == {"base": 3, "sft": 2}
    assert found.left_out == ("grpo",)
    assert "Without a seed on every task: grpo." in render(tmp_path, "demo")


def test_one_seed_gives_no_interval(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1, tasks=TASKS)
    page = render(tmp_path, "demo")
    table = re.search(r'<section id="aggregates">.*?</table>', page, re.S)
    assert table
    assert "[" not in table[0].split("<tbody>")[1]
