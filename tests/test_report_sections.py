"""Each section of the page says what the files hold, checked against the files or a closed form."""

import csv
import io
import json
import re

import pytest
from scipy.stats import ttest_rel
from synthetic import MORE, TROUBLE, write_architectures, write_comparison

from reports.cost import costs, pareto
from reports.data import data
from reports.errors import errors
from reports.health import health
from reports.html import render
from reports.leaderboard import leaderboards
from reports.lengths import lengths
from reports.load import load
from reports.looks import looks
from reports.maps import maps
from reports.process import process
from reports.samples import samples
from reports.significance import significance
from reports.tally import ANOTHER, TRUNCATED, UNSAID, category, tally
from reports.tries import tries


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sections")
    write_comparison(root, tasks=("arithmetic", "people"), states=TROUBLE, samples=4, traced=True, problems=12)
    return root


@pytest.fixture(scope="module")
def comparison(root):
    return load(root, "demo")


@pytest.fixture(scope="module")
def runs(comparison):
    return comparison.of("arithmetic", "tiny")


@pytest.fixture(scope="module")
def tallies(comparison):
    return {run.id: tally(run) for run in comparison.runs if run.done}


def test_a_tally_counts_what_the_file_holds(runs, tallies):
    run = next(run for run in runs if run.label == "grpo")
    rows = [row for row in run.evaluation("test") if not row["greedy"]]
    found = tallies[run.id]
    assert found.samples == len(rows) == 48
    assert found.number[True] == sum(row["reward"] == 1 for row in rows)
    wrong = [row["length"] for row in rows if row["reward"] != 1]
    assert found.length(False) == pytest.approx(sum(wrong) / len(wrong))
    assert found.counts["p0003"] == (4, sum(row["reward"] == 1 for row in rows if row["problem"] == "p0003"))
    assert found.reasons.total() == len(wrong)
    assert found.traces.total() == len(rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reason": "expected 770"}, ANOTHER),
        ({"reason": "f(3) is 5, not 17"}, "f(…) is …, not …"),
        ({"reason": "syntax error: line 1"}, "syntax error"),
        ({"reason": "expected 1", "truncated": True}, TRUNCATED),
        ({"reason": ""}, UNSAID),
        ({}, UNSAID),
    ],
)
def test_reasons_that_differ_in_a_number_are_one(row, said):
    assert category(row) == said


def test_arms_that_nobody_beats_at_their_price():
    points = {"free": (0, 0.2), "worse": (2, 0.1), "good": (1, 0.5), "same": (2, 0.5), "best": (3, 0.6), "dearer": (3, 0.55)}
    assert pareto(points) == ["free", "good", "best"]


def test_cost_counts_the_stages_before(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft", "sft-grpo"), seeds=2)
    comparison = load(tmp_path, "demo")
    (board,) = leaderboards(comparison)
    found = costs(board.frame, comparison.runs, looks(comparison))
    assert found
    paid = {row[1]: row[2] for row in found.data.rows if row[0] == "FLOPs"}
    assert paid == pytest.approx({"base": 0, "sft": 1e12, "sft-grpo": 1e12 + 1.6e12})


def test_pairs_are_paired_t_tests_adjusted_by_holm(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=4)
    (board,) = leaderboards(load(tmp_path, "demo"))
    scores = {row["arm"]: [row["scores"][seed] for seed in range(4)] for row in board.frame.to_dict("records")}
    found = significance(board.frame)
    assert found
    said = {(row[0], row[1]): row for row in found.data.rows}
    raw = {pair: float(ttest_rel(scores[pair[0]], scores[pair[1]]).pvalue) for pair in said}
    least = 0.0
    for rank, pair in enumerate(sorted(raw, key=raw.__getitem__)):
        least = max(least, min(1.0, raw[pair] * (3 - rank)))
        assert said[pair][6] == pytest.approx(least)
    assert [len(pairs) for _, pairs in found.rows] == [2, 2]
    assert found.rows[1][1][0] is None


def test_arms_without_two_shared_seeds_are_not_tested(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=1)
    (board,) = leaderboards(load(tmp_path, "demo"))
    assert significance(board.frame) is None


def test_maps_stand_for_several_tasks_or_models_and_name_what_failed(tmp_path, comparison):
    (map,) = maps(comparison, leaderboards(comparison))
    assert (map.title, map.columns) == ("Method × task", ("arithmetic", "people"))
    cells = dict(map.rows)
    assert cells["grpo"][0].level == 9 or cells["grpo"][1].level == 9
    assert all(not cell.missing for row in cells.values() for cell in row)
    write_architectures(tmp_path, models=("dense", "moe"), seeds=1, states={("grpo", 0): "failed"}, problems=2)
    other = load(tmp_path, "demo")
    (map,) = maps(other, leaderboards(other))
    assert map.title == "Method × architecture"
    assert [cell.missing for arm, row in map.rows for cell in row if arm == "grpo"] == ["1 failed", "1 failed"]
    write_comparison(tmp_path / "one", arms=("base",), seeds=1)
    assert maps(load(tmp_path / "one", "demo"), leaderboards(load(tmp_path / "one", "demo"))) == []


def test_more_samples_are_worth_what_the_counts_say(comparison, runs, tallies):
    passed, voted = tries(runs, tallies, looks(comparison))
    rows = [row for row in passed.data.rows if row[0] == "grpo"]
    assert [row[1] for row in rows] == [1, 2, 4]
    own = [tallies[run.id] for run in runs if run.label == "grpo"]
    shares = [sum(c > 0 for _, c in one.counts.values()) / 12 for one in own]
    assert rows[-1][2] == pytest.approx(sum(shares) / 3)
    assert voted.data.columns[2] == "maj@k"
    assert voted.data.rows[0][2] == pytest.approx(passed.data.rows[0][2])  # of one sample, the majority is the sample


def test_lengths_are_means_over_seeds_of_means_over_completions(comparison, runs, tallies):
    found = lengths(runs, tallies, looks(comparison))
    assert found
    row = next(row for row in found.rows if row.label == "sft")
    own = [tallies[run.id].length(True) for run in runs if run.label == "sft" and run.done]
    assert row.marks[0].interval.mean == pytest.approx(sum(own) / len(own))
    assert row.marks[0].interval.n == 2


def test_the_bars_of_wrong_answers_add_up(runs, tallies):
    found = errors(runs, tallies)
    assert found
    for arm, parts, share in found.rows:
        own = [tallies[run.id] for run in runs if run.label == arm and run.done]
        assert share == pytest.approx(sum(one.number[False] for one in own) / sum(one.samples for one in own))
        assert sum(part.width for part in parts) == pytest.approx(100 * share / found.end, abs=0.1)


def test_answers_that_improve_while_explanations_get_worse_are_named(runs, tallies):
    found = process(runs, tallies)
    assert found
    assert "grpo" in found.apart
    assert "grpo-random-reward" not in found.apart
    row = next(row for row in found.rows if row.label == "grpo")
    lines = [line for run in runs if run.label == "grpo" for line in run.evaluation("test") if not line["greedy"]]
    judged = [line["trace"] for line in lines if line["reward"] == 1 and line["trace"] is not None]
    assert row.lucky == pytest.approx(judged.count(False) / len(judged))


def test_runs_of_before_reasoning_was_judged_have_no_such_section(tmp_path):
    write_comparison(tmp_path, arms=("base", "sft"), seeds=2, problems=2)
    comparison = load(tmp_path, "demo")
    assert process(comparison.runs, {run.id: tally(run) for run in comparison.runs}) is None
    assert "Process against outcome" not in render(tmp_path, "demo")


def test_a_run_that_a_check_stopped_is_named(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "grpo"), seeds=2, states={("grpo", 1): "failed"}, problems=2)
    said = "harness.errors.TrustError: the loss mask leaves out EOS in 3 of 256 sequences that ended"
    (tmp_path / "runs" / identities[3] / "FAILED").write_text(f"Traceback\n{said}\n")
    found = health(load(tmp_path, "demo").runs)
    assert found
    assert [(row.label, row.asked, row.done, row.checks) for row in found.rows] == [("grpo", 2, 1, 1)]
    assert found.failures == ((identities[3], said),)
    assert "leaves out EOS" in render(tmp_path, "demo")


def test_rewards_that_need_a_look_and_methods_that_disagree_have_filters(tmp_path):
    identities = write_comparison(tmp_path, arms=("base", "sft", "grpo"), seeds=1, problems=4)

    def rewrite(number, **changes):
        path = next((tmp_path / "runs" / identities[number] / "evals").glob("*-test.jsonl"))
        rows = [json.loads(line) | {"reward": 1.0, "truncated": False, "answer": "1"} for line in path.read_text().splitlines()]
        for row in rows:
            if row["problem"] in changes:
                row.update(changes[row["problem"]])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    rewrite(0)
    rewrite(1, p0000={"truncated": True}, p0001={"trace": False}, p0002={"reward": 0.5}, p0003={"answer": None})
    rewrite(2, p0003={"reward": 0.0, "answer": "7", "expected": "7"})
    found = samples(load(tmp_path, "demo").runs)
    assert found
    doubts = {a.doubt for problem in found.problems for a in problem.answers if a and a.doubt}
    assert doubts == {
        "right, and truncated", "right, and its reasoning is not valid", "rewarded 0.5", "right, without an answer",
        "wrong, with the expected answer",
    }  # fmt: skip
    apart = [[a.label for a in problem.answers if a and "apart" in a.kinds] for problem in found.problems]
    assert apart == [[], [], ["sft", "grpo"], ["sft", "grpo"]]
    assert found.counts["doubt"] == 4


def test_data_is_what_a_spreadsheet_reads_and_no_formula():
    text = data("x", ("a", "b"), [("=1+1", 0.123456789), ('say "hi", all', float("nan")), ("−", None)]).csv
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], ["'=1+1", "0.123457"], ['say "hi", all', ""], ["−", ""]]


def test_every_figure_with_numbers_has_its_data(tmp_path):
    write_comparison(tmp_path, arms=("base", *MORE, "sft"), seeds=2, samples=3, traced=True, problems=4)
    page = render(tmp_path, "demo")
    names = re.findall(r'class="download" data-name="([^"]+)"', page)
    wanted = {"scores", "leaderboard", "eval-pass@1", "reward-and-kl", "pass-at-k", "maj-at-k", "cost", "pairs"}
    wanted |= {"length-by-correctness", "verdicts", "wrong-by-reason", "process-and-outcome", "training-health"}
    assert wanted <= {name.removesuffix(".csv") for name in names}


def test_the_verdicts_on_claims_stand_on_the_page(tmp_path):
    write_comparison(tmp_path, arms=("base", "grpo"), seeds=3, problems=2)
    path = tmp_path / "comparisons" / "demo" / "comparison.toml"
    claim = '[claims.{}]\ntext = "{} <b>claim"\nsource = "here"\nparts = [{{ arm = "{}", against = "base", above = 0.02 }}]\n'
    path.write_text(path.read_text() + claim.format("one", "first", "grpo") + claim.format("two", "second", "absent"))
    page = render(tmp_path, "demo")
    assert "first &lt;b&gt;claim" in page
    assert re.findall(r'<b class="(?:good|bad|open)">([A-Z ]+)</b>', page) == ["PASS", "NOT TESTABLE"]
    write_comparison(tmp_path / "none", arms=("base",), seeds=1, problems=2)
    assert 'id="claims"' not in render(tmp_path / "none", "demo")
