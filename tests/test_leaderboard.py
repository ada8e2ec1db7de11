"""The leaderboard and the finding: who is ranked where, and what is claimed of it."""

import json
import re

import pytest
from synthetic import TROUBLE, write_comparison

from reports.finding import finding
from reports.html import render
from reports.leaderboard import leaderboards, records, text
from reports.load import load


def board_of(root, **written):
    write_comparison(root, **written)
    return leaderboards(load(root, "demo"))


def test_an_arm_of_which_nothing_started_is_still_an_arm(tmp_path):
    states = {("grpo", seed): "missing" for seed in range(2)}
    rows = {row["arm"]: row for row in board_of(tmp_path, seeds=2, states=states)[0].frame.to_dict("records")}
    assert (rows["grpo"]["done"], rows["grpo"]["absent"], rows["grpo"]["asked"]) == (0, 2, 2)


def test_the_delta_is_paired_with_the_base_of_the_same_seed(tmp_path):
    frame = board_of(tmp_path, arms=("base", "grpo"))[0].frame.set_index("arm")
    scores, base = frame.loc["grpo", "scores"], frame.loc["base", "scores"]
    assert frame.loc["grpo", "delta"] == pytest.approx(sum(scores[s] - base[s] for s in range(3)) / 3)
    assert frame.loc["grpo", "delta_low"] < frame.loc["grpo", "delta"] < frame.loc["grpo", "delta_high"]
    assert records(frame.reset_index())[1]["delta"] is None


def test_forgetting_is_measured_on_the_other_tasks(tmp_path):
    frame = board_of(tmp_path, arms=("base", "grpo"), tasks=("arithmetic", "people"))[0].frame.set_index("arm")
    assert frame.loc["grpo", "forgetting"] == pytest.approx(-0.07, abs=0.03)


def test_arms_are_ranked_by_pass_at_1_and_unscored_ones_come_last(tmp_path):
    boards = board_of(tmp_path, states={("grpo", s): "failed" for s in range(3)})
    frame = boards[0].frame
    assert list(frame["rank"]) == list(range(1, 8))
    assert frame["arm"].iloc[-1] == "grpo"
    assert frame["pass@1"].iloc[:-1].is_monotonic_decreasing
    json.dumps(records(frame), allow_nan=False)
    assert "0/3 (3 failed)" in text(frame)


def test_the_terminal_table_is_aligned_and_holds_no_control_character(tmp_path):
    lines = text(board_of(tmp_path)[0].frame).split("\n")
    assert len(lines) == 8
    assert len({line.index("/") for line in lines[1:]}) == 1
    assert all(line.isprintable() for line in lines)


def test_the_finding_names_the_best_arm_its_interval_and_its_control(tmp_path):
    said = finding(board_of(tmp_path, seeds=5))
    assert re.fullmatch(
        r"On arithmetic, grpo solves \d+\.\d% of held-out problems, \+\d+\.\d points over the base "
        r"\(95% CI \+\d+\.\d to \+\d+\.\d, 5 seeds\); it .*; the control grpo-random-reward .*\.",
        said,
    )


def test_the_finding_of_few_seeds_is_preliminary(tmp_path):
    assert finding(board_of(tmp_path, seeds=3)).startswith("Preliminary, with 3 seeds: on arithmetic, ")


def test_the_finding_claims_nothing_where_the_interval_holds_zero(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "sft"), seeds=5, gain=0.0))
    assert "not distinguishable from the base (difference" in said
    assert "over the base" not in said


def test_the_finding_says_that_every_arm_fell_below_the_base(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "sft"), seeds=5, gain=-0.15))
    assert "falls −" in said
    assert "points from the base" in said


def test_the_finding_of_one_seed_has_no_interval(tmp_path):
    said = finding(board_of(tmp_path, seeds=1))
    assert "too few for an interval" in said
    assert "CI" not in said


def test_the_finding_says_that_runs_failed(tmp_path):
    assert "1 of 21 runs failed; 2 of 21 runs have not finished" in finding(board_of(tmp_path, states=TROUBLE))


def test_a_control_that_moves_is_told(tmp_path):
    said = finding(board_of(tmp_path, arms=("base", "grpo", "grpo-random-reward"), seeds=5, gain=0.2))
    assert "the control grpo-random-reward moves too" in said
    assert "not distinguishably better than it" in said


def test_what_earlier_stages_cost_is_told_where_there_are_any(tmp_path):
    staged = board_of(tmp_path / "staged", arms=("base", "sft", "sft-grpo"), seeds=2)[0].frame
    assert staged.set_index("arm")["ancestors_flops"].dropna().to_dict() == {"sft-grpo": 1.6e12}
    head, *lines = text(staged).split("\n")
    assert "before" in head
    assert [("+1.60T" in line) for line in lines] == [line.startswith("sft-grpo") for line in lines]
    assert {row["arm"]: row["ancestors_flops"] for row in records(staged)}["sft"] is None
    plain = board_of(tmp_path / "plain", arms=("base", "sft"), seeds=2)[0].frame
    assert "before" not in text(plain)
    assert render(tmp_path / "staged", "demo").count("<small>+1.60T before</small>") == 1
    assert " before</small>" not in render(tmp_path / "plain", "demo")
