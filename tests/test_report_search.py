"""The panels of a search: what they draw of trials that ended, were pruned, failed or were taken up again."""

import json
from itertools import pairwise

import pytest
from synthetic import write_comparison

from harness.pack import pack, unpack
from harness.shard import Shard
from reports.html import render
from reports.load import ReportError, load
from reports.search import Scale, search

RANGES = {"lr": {"log_uniform": [1e-5, 1e-2]}, "group": {"powers_of_two": [2, 32]}}
SCORES = (0.31, 0.40, 0.35, 0.45, None)  # of the trials, in their order; one failed
AGAIN = {"trial": 1, "options": {}, "searched": 0.4, "seeds": {"2100": 0.4, "2101": 0.42}, "why": ""}
AGAIN |= {"flops": 1e11, "seconds": 60.0}


def trial(number, score, **changes):
    means = None if score is None else {"pass@1": score, "reward": score, "kl": score / 10, "truncated": 0.0}
    return {
        "study": "grpo",
        "trial": number,
        "state": "complete" if means else "fail",
        "options": {"lr": 10.0 ** (-5 + number / 2), "group": 2 ** (1 + number)},
        "begun": [f"2026-11-21T17:{10 * number:02}:00+00:00"],
        "feasible": True,
        "ended": f"2026-11-21T17:{10 * number + 5:02}:00+00:00",
        "means": means,
        "seeds": {},
        "runs": [],
        "why": "" if means else "grpo has diverged",
        "flops": 4e11,
        "seconds": 120.0,
        **changes,
    }


def write_search(root, rows, **changes):
    """A search of one method, whose default and tuned are arms of the comparison."""
    write_comparison(root, "demo", arms=("sft", "grpo"), seeds=3)
    renamed = {"sft": "grpo-default", "grpo": "grpo-tuned"}
    for path in (root / "runs").glob("*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"label": renamed[config["label"]]}))
    found = {
        "objectives": ["pass@1"],
        "constraints": {},
        "sampler": "tpe",
        "pruner": "none",
        "trials": len(rows),
        "seeds": [2000, 2001],
        "confirm_seeds": [2100, 2101],
        "studies": {
            "grpo": {
                "method": "grpo",
                "ranges": RANGES,
                "default": {"lr": 3e-4, "group": 8},
                "importances": {},
                "again": [AGAIN],
                "tuned": 1,
                "options": {"lr": 10**-4.5, "group": 4},
                **changes,
            }
        },
    }
    folder = root / "comparisons" / "demo"
    (folder / "search.json").write_text(json.dumps(found))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(root, rows, **changes):
    found = search(write_search(root, rows, **changes), load(root, "demo"))
    assert found
    return found


def heights(path):
    return [int(point.split()[1]) for point in path[1:].split("L")]


def test_a_comparison_without_a_search_has_no_panels(tmp_path):
    write_comparison(tmp_path, arms=("sft",), seeds=1)
    assert search(tmp_path / "comparisons" / "demo", load(tmp_path, "demo")) is None
    assert 'id="search"' not in render(tmp_path, "demo")


def test_the_history_shows_every_scored_trial_and_a_best_that_never_falls(tmp_path):
    (study,) = shown(tmp_path, [trial(i, score) for i, score in enumerate(SCORES)]).studies
    assert [dot.state for dot in study.history.dots] == ["complete", "best", "complete", "complete"]
    above = [dot.y for dot in study.history.dots]
    assert sorted(above) == [above[3], above[1], above[2], above[0]]  # least is highest on the page
    ((_, stairs),) = study.history.paths
    assert all(after <= before for before, after in pairwise(heights(stairs)))


def test_a_trial_beyond_a_cap_or_pruned_is_hollow_and_never_the_best_so_far(tmp_path):
    rows = [trial(0, 0.31), trial(1, 0.4), trial(2, 0.9, feasible=False), trial(3, 0.8, state="pruned")]
    (study,) = shown(tmp_path, rows).studies
    assert [dot.state for dot in study.history.dots] == ["complete", "best", "pruned", "pruned"]
    ((_, stairs),) = study.history.paths
    assert min(heights(stairs)) == round(10 * study.history.dots[1].y)


def test_a_slice_places_a_value_on_the_scale_that_it_was_drawn_on(tmp_path):
    (study,) = shown(tmp_path, [trial(i, 0.3 + i / 100) for i in range(5)]).studies
    for chart in study.slices:
        steps = [after.x - before.x for before, after in pairwise(chart.dots)]
        assert max(steps) - min(steps) < 1e-9, chart.title
    assert [text for _, text in study.slices[0].x_ticks] == ["1e-05", "0.0001", "0.001", "0.01"]
    assert [text for _, text in study.slices[1].x_ticks] == ["2", "4", "8", "16", "32"]


@pytest.mark.parametrize(
    ("table", "value", "at"),
    [
        ({"uniform": [0.0, 0.5]}, 0.25, 50.0),
        ({"log_uniform": [1e-4, 1.0]}, 1e-2, 50.0),
        ({"powers_of_two": [2, 32]}, 8, 50.0),
        ({"choice": ["k1", "k2", "k3"]}, "k2", 50.0),
        ({"integer": [1, 5]}, 5, 96.0),
    ],
)
def test_every_kind_of_range_has_its_own_distances(table, value, at):
    assert Scale(table).place(value) == pytest.approx(at)
    assert len(Scale(table).marks()) >= 2


def test_the_front_joins_what_nothing_beats_in_both(tmp_path):
    rows = [
        trial(0, 0.3, means={"pass@1": 0.3, "kl": 0.01}),
        trial(1, 0.2, means={"pass@1": 0.2, "kl": 0.02}),
        trial(2, 0.5, means={"pass@1": 0.5, "kl": 0.05}),
    ]
    (study,) = shown(tmp_path, rows).studies
    ((_, path),) = study.front.paths
    assert heights(path) == [round(10 * study.front.dots[i].y) for i in (0, 2)]


def test_the_timeline_marks_where_a_trial_was_taken_up_again(tmp_path):
    twice = ["2026-11-21T17:00:00+00:00", "2026-11-21T17:02:00+00:00"]
    (study,) = shown(tmp_path, [trial(0, 0.3, begun=twice), trial(1, 0.4)]).studies
    assert study.timeline
    first, second = study.timeline.bars
    assert first.start < first.again[0] < first.start + first.width
    assert second.again == ()
    assert second.start > first.start + first.width


def test_the_effort_counts_trials_by_how_they_ended_and_the_best_again(tmp_path):
    rows = [trial(0, 0.3), trial(1, 0.4), trial(2, None), trial(3, 0.2, state="pruned")]
    (effort,) = shown(tmp_path, rows).effort
    assert effort.counts == (2, 1, 1)
    assert effort.flops == pytest.approx(4 * 4e11 + 1e11)
    assert effort.seconds == 4 * 120 + 60


def test_tuned_and_default_are_paired_by_seed_on_test_problems(tmp_path):
    rows = [trial(i, score) for i, score in enumerate(SCORES)]
    (study,) = shown(tmp_path, rows).studies
    runs = {(run.label, run.seed): run.metrics["test/pass@1"].dropna().iloc[-1] for run in load(tmp_path, "demo").runs}
    gains = [runs["grpo-tuned", seed] - runs["grpo-default", seed] for seed in range(3)]
    assert study.difference
    assert study.difference.mean == pytest.approx(sum(gains) / 3)
    assert study.difference.n == 3


def test_importances_stand_beside_the_ranges_by_both_estimators(tmp_path):
    shares = {"PED-ANOVA": {"lr": 0.9, "group": 0.1}, "fANOVA": {"lr": 0.75, "group": 0.25}}
    rows = [trial(i % 5, 0.3 + i / 100) for i in range(30)]
    (study,) = shown(tmp_path, rows, importances=shares).studies
    assert study.estimators == ("PED-ANOVA", "fANOVA")
    assert dict(study.importances) == {"lr": (0.9, 0.75), "group": (0.1, 0.25)}
    assert "Importances need" not in study.caption


def test_a_best_trial_that_did_not_hold_on_other_seeds_is_shown_with_the_reason(tmp_path):
    lost = {**AGAIN, "trial": 3, "seeds": {}, "why": "sft has diverged"}
    (study,) = shown(tmp_path, [trial(i, 0.3 + i / 100) for i in range(5)], again=[lost, AGAIN]).studies
    assert study.again == ((3, "40.0", "–", "sft has diverged"), (1, "40.0", "41.0", "tuned"))


def test_trials_of_one_setting_are_charged_once(tmp_path):
    same = trial(0, 0.3)["options"]
    (effort,) = shown(tmp_path, [trial(0, 0.3), trial(1, 0.4), trial(2, 0.3, options=same)]).effort
    assert effort.counts == (3, 0, 0)
    assert effort.flops == pytest.approx(2 * 4e11 + 1e11)


def test_the_front_leaves_out_what_is_never_the_best(tmp_path):
    rows = [trial(0, 0.3), trial(1, 0.4), trial(2, 0.9, feasible=False), trial(3, 0.8, state="pruned")]
    (study,) = shown(tmp_path, rows).studies
    ((_, path),) = study.front.paths
    assert heights(path) == [round(10 * study.front.dots[i].y) for i in (0, 1)]


def test_the_page_has_the_panels_and_of_few_trials_says_that_importances_are_missing(tmp_path):
    write_search(tmp_path, [trial(i, score) for i, score in enumerate(SCORES)])
    page = render(tmp_path, "demo")
    for words in ("How the settings were found", "Tuning budget", "Best against default"):
        assert words in page, words
    for words in ("Slice: lr", "Parallel coordinates", "Pareto front", "Timeline"):
        assert words in page, words
    assert "Importances need 30 complete trials" in page
    assert "grpo has diverged" in page


def test_a_search_is_packed_with_its_comparison(tmp_path):
    folder = write_search(tmp_path, [trial(0, 0.3), trial(1, 0.4)])
    (folder / "runs.txt").write_text("")
    pack("demo", tmp_path, tmp_path / "demo.jsonl.xz", Shard())
    unpack(tmp_path / "demo.jsonl.xz", tmp_path / "there")
    for name in ("search.json", "trials.jsonl"):
        assert (tmp_path / "there" / "comparisons" / "demo" / name).read_text() == (folder / name).read_text()


def test_trials_that_all_score_the_same_are_drawn(tmp_path):
    (study,) = shown(tmp_path, [trial(i, 0.25) for i in range(3)]).studies
    assert len({dot.y for dot in study.history.dots}) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"studies": {"grpo": {}}}'])
def test_a_file_that_is_no_search_is_named(tmp_path, text):
    folder = write_search(tmp_path, [trial(0, 0.3), trial(1, 0.4)])
    (folder / "search.json").write_text(text)
    with pytest.raises(ReportError, match=r"search\.json"):
        search(folder, load(tmp_path, "demo"))
