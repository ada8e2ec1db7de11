"""Verdicts on claims: the rule, Holm's confidence among parts, preconditions, and what was known when they were written down."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import files
from harness.errors import BakeoffError
from harness.register import digest, register
from reports.claims import Part, read, verdicts
from reports.evidence import NotTestable, statistic
from reports.load import Comparison, Run
from reports.stats import Interval, t_interval

ROOT = Path(__file__).parents[1]
PUBLISHED = [path for path in sorted((ROOT / "sweeps").rglob("*.toml")) if "claims" in tomllib.loads(path.read_text())]


def run(label, seed, task="arithmetic", model="dense", status="done", directory=Path("nowhere"), config=None, **columns):
    """A run whose metrics are these: a number is the last line's, a list is a curve."""
    points = max((len(v) for v in columns.values() if isinstance(v, list)), default=1)
    table = {name.replace("__", "/").replace("_at_", "@"): v if isinstance(v, list) else [None] * (points - 1) + [v]
             for name, v in columns.items()}  # fmt: skip
    table["budget/flops"] = [float(i) for i in range(points)]
    return Run(f"{task}-{label}-{model}-s{seed}", directory, status, label=label, method=label, task=task, model=model,
               seed=seed, config=config or {}, metrics=pd.DataFrame(table).astype(float))  # fmt: skip


def scored(**arms):
    """A run a seed of each arm, with these scores."""
    return [
        run(label.replace("_", "-"), seed, test__pass_at_1=score)
        for label, scores in arms.items()
        for seed, score in enumerate(scores)
    ]


def comparison(runs, registered=(), **claims):
    return Comparison("x", {"claims": claims}, tuple(runs), registered)


def claim(*parts, **more):
    return {"text": "it works", "source": "nobody", "parts": list(parts), **more}


BASE = [0.20, 0.21, 0.19, 0.20, 0.20]
BETTER = [0.30, 0.32, 0.29, 0.31, 0.30]
RULE = {"arm": "grpo", "against": "base", "above": 0.02}


def verdict(runs, *parts, **more):
    (found,) = verdicts(comparison(runs, it=claim(*parts, **more)))
    return found


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"above": 0.02}, "PASS"),
        ({"above": 0.2}, "FAIL"),
        ({"above": 0.104}, "INCONCLUSIVE"),
        ({"below": 0.2}, "PASS"),
        ({"below": 0.02}, "FAIL"),
        ({"below": 0.104}, "INCONCLUSIVE"),
        ({"within": 0.2}, "PASS"),
        ({"within": 0.02}, "FAIL"),
        ({"within": 0.104}, "INCONCLUSIVE"),
    ],
)
def test_the_interval_and_its_margin_decide(bound, expected):
    found = verdict(scored(base=BASE, grpo=BETTER), {"arm": "grpo", "against": "base"} | bound)
    assert found.verdict == expected
    (part,) = found.parts
    assert part.interval == t_interval([b - a for a, b in zip(BASE, BETTER, strict=True)], part.confidence)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 0.5))
def test_a_part_passes_and_fails_never_both_and_equivalence_is_two_sided(mean, half, margin):
    found = Interval(mean, mean - half, mean + half, 5)
    assert Part(arm="a", above=margin).outcome(found) == Part(arm="a", below=-margin).outcome(
        Interval(-mean, -mean - half, -mean + half, 5)
    )
    within = Part(arm="a", within=margin).outcome(found)
    assert (within == "PASS") == (abs(mean) + half < margin)
    assert (within == "FAIL") == (abs(mean) - half > margin)


def test_one_part_that_fails_fails_the_claim_and_one_that_is_open_leaves_it_open():
    runs = scored(base=BASE, grpo=BETTER)
    passes, fails, open_ = RULE, RULE | {"above": 0.5}, RULE | {"above": 0.104}
    assert verdict(runs, passes).verdict == "PASS"
    assert verdict(runs, passes, open_).verdict == "INCONCLUSIVE"
    assert verdict(runs, passes, open_, fails).verdict == "FAIL"


def test_the_more_is_claimed_the_wider_the_intervals():
    runs = scored(base=BASE, grpo=BETTER)
    alone = verdict(runs, RULE).parts[0]
    many = verdicts(comparison(runs, **{f"c{i}": claim(RULE) for i in range(4)}))
    assert alone.confidence == pytest.approx(0.95)
    widest = max(v.parts[0].confidence for v in many)
    assert widest == pytest.approx(1 - 0.05 / 4)
    assert all(v.parts[0].interval.half >= alone.interval.half for v in many)


def test_a_precondition_that_fails_is_the_reason_and_takes_no_confidence_from_others():
    runs = scored(base=BASE, grpo=BETTER)
    room = {"metric": "test/pass@1", "arm": "base", "below": 0.1, "because": "the base leaves no room"}
    closed, open_ = verdicts(comparison(runs, a=claim(RULE, requires=[room]), b=claim(RULE)))
    assert closed.verdict == "NOT TESTABLE"
    assert closed.reason == "the base leaves no room: test/pass@1 of base is 0.2, must be below 0.1"
    assert open_.parts[0].confidence == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (scored(base=BASE), "the comparison has no arm grpo"),
        (scored(base=BASE, grpo=[0.3]), "1 finished seed, an interval needs 2"),
        ([*scored(base=BASE), run("grpo", 0, status="failed")], "no seed of grpo has finished"),
        ([*scored(base=BASE), run("grpo", 0), run("grpo", 1)], "no run of grpo has measured test/pass@1"),
    ],
)
def test_what_is_missing_is_not_testable_and_says_what(runs, reason):
    found = verdict(runs, RULE)
    assert found.verdict == "NOT TESTABLE"
    assert reason in found.reason
    assert found.parts == ()


def test_few_seeds_are_called_preliminary():
    assert "preliminary: 3 seeds" in verdict(scored(base=BASE[:3], grpo=BETTER[:3]), RULE).reason
    assert "preliminary" not in verdict(scored(base=BASE, grpo=BETTER), RULE).reason


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"text": "t", "source": "s", "parts": []}, "needs at least one"),
        (claim({"arm": "grpo"}), "exactly one of above, below and within"),
        (claim({"arm": "grpo", "above": 0.1, "below": 0.2}), "exactly one of above, below and within"),
        (claim({"arm": "grpo", "within": 0.0}), "within must be greater than 0"),
        (claim({"arm": "grpo", "abvoe": 0.1}), "did you mean 'above'"),
        (claim({"arm": "grpo", "above": 0.1, "statistic": "guess"}), "statistic"),
        (claim(RULE, requires=[{"metric": "m", "arm": "a", "because": "b"}]), "one of above and below"),
        (claim(RULE) | {"txet": 1}, "did you mean 'text'"),
    ],
)
def test_what_is_not_a_claim_is_refused_by_name(table, said):
    with pytest.raises(BakeoffError, match=r"file\.toml: claims\.it") as error:
        read({"it": table}, "file.toml")
    assert said in str(error.value)


def test_a_claim_knows_whether_it_was_written_down_first(tmp_path):
    asked = {"claims": {"it": claim(RULE)}, "seeds": [0], "methods": {}}
    register(tmp_path, asked, finished=0)
    register(tmp_path, asked | {"seeds": [0, 1]}, finished=4)
    assert len(files.read_jsonl(tmp_path / "claims.jsonl")) == 1
    changed = {**asked, "claims": {"it": claim(RULE | {"above": 0.0})}}
    register(tmp_path, changed, finished=10)
    rows = tuple(files.read_jsonl(tmp_path / "claims.jsonl"))
    assert digest(asked) != digest(changed)
    said = [verdicts(Comparison("x", a, tuple(scored(base=BASE, grpo=BETTER)), r))[0].registered
            for a, r in ((asked, rows), (changed, rows), (changed, ()))]  # fmt: skip
    assert said == ["written down before any run", "written down after 10 runs", "not written down before the runs"]


# the statistics


def of(runs, name, metric="test/pass@1", arms=("a",), against=()):
    return statistic(comparison(runs), name, metric, arms, against)


def test_difference_and_ratio_pair_the_seeds_that_both_have():
    runs = scored(a=[1.0, 2.0, 3.0], b=[0.5, 4.0])
    assert of(runs, "difference", against=("b",)) == {0: 0.5, 1: -2.0}
    assert of(runs, "ratio", against=("b",)) == {0: 2.0, 1: 0.5}


def test_over_several_tasks_an_arm_is_its_mean_and_a_seed_counts_when_it_has_them_all():
    runs = [run("a", s, task=t, test__pass_at_1=v) for s, t, v in ((0, "x", 0.2), (0, "y", 0.4), (1, "x", 0.6))]
    missing = run("a", 1, task="y", status="failed")
    assert of([*runs, missing], "value") == pytest.approx({0: 0.3})
    assert of(runs, "value", arms=("a/x",)) == {0: 0.2, 1: 0.6}


def test_an_arm_may_be_of_one_base():
    runs = [run("base", s, model=m, test__pass_at_1=v) for s in (0, 1) for m, v in (("moe", 0.4), ("dense", 0.3))]
    assert of(runs, "difference", arms=("base@moe",), against=("base@dense",)) == pytest.approx({0: 0.1, 1: 0.1})


def test_what_a_base_or_its_drafts_measured_can_be_claimed(tmp_path):
    files.write_json(tmp_path / "base.json", {"held_out": 0.4, "families": {"knights": 0.3}})
    files.write_json(tmp_path / "drafts.json", {"arithmetic": {"tokens": 19, "rounds": 10}})
    runs = [run("a", s, directory=tmp_path, config={"base": f"of-{s}"}, test__pass_at_1=0.5) for s in (0, 1)]
    assert of(runs, "value", "base/held_out") == {0: 0.4, 1: 0.4}
    assert of(runs, "value", "base/families/knights") == {0: 0.3, 1: 0.3}
    assert of(runs, "value", "drafts/tokens / drafts/rounds") == {0: 1.9, 1: 1.9}
    with pytest.raises(NotTestable, match="base/nothing"):
        of(runs, "value", "base/nothing")


def test_seeds_of_one_base_are_one_observation_of_what_their_base_decides(tmp_path):
    files.write_json(tmp_path / "base.json", {"held_out": 0.4})
    shared = [run("base", s, directory=tmp_path, config={"base": f"of-{s // 2}"}, step=0, test__greedy=0.6) for s in range(4)]
    assert of(shared, "value", "base/held_out", arms=("base",)) == {0: 0.4, 2: 0.4}
    assert of(shared, "value", "test/greedy", arms=("base",)) == {0: 0.6, 2: 0.6}
    trained = [run("a", s, config={"base": f"of-{s // 2}"}, step=9, test__greedy=0.6 + s) for s in range(4)]
    assert len(of([*shared, *trained], "difference", "test/greedy", against=("base",))) == 4
    one_base = [run("base", s, directory=tmp_path, config={"base": "of-0"}, step=0) for s in range(5)]
    found = verdict(one_base, {"arm": "base", "statistic": "value", "metric": "base/held_out", "above": 0.0})
    assert found.verdict == "NOT TESTABLE"


def test_a_column_that_was_logged_is_read_and_not_counted_again(tmp_path):
    rows = [{"problem": "p", "greedy": False, "reward": 1.0, "answer": "7"} for _ in range(4)]
    files.write(tmp_path / "evals" / "000003-validation.jsonl", files.jsonl(rows))
    runs = [run("a", 0, directory=tmp_path, eval__pass_at_1=0.43)]
    assert of(runs, "value", "eval/pass@1") == {0: 0.43}
    assert of(runs, "value", "eval/pass@4") == {0: 1.0}


@pytest.mark.parametrize(("metric", "path"), [("test/pass@4", "evals/000003-test.jsonl"), ("base/held_out", "base.json")])
def test_half_a_file_is_not_testable_and_named(tmp_path, metric, path):
    files.write(tmp_path / path, '{"problem": "p", "gree\n{}\n')
    with pytest.raises(NotTestable, match="a-dense-s0"):
        of([run("a", 0, directory=tmp_path, test__pass_at_1=0.5)], "value", metric)


def test_runs_that_failed_or_are_to_go_are_said_with_the_verdict():
    runs = [*scored(base=BASE, grpo=BETTER), run("grpo", 5, status="failed"), run("grpo", 6, status="missing")]
    assert "2 runs of its arms failed or are to go, and left out" in verdict(runs, RULE).reason
    assert "of its arms" not in verdict(scored(base=BASE, grpo=BETTER), RULE).reason


@pytest.mark.parametrize(("n", "said"), [(4, "preliminary: 4 seeds"), (7, "7 seeds, fewer than 8"), (8, "")])
def test_how_few_seeds_a_verdict_has_is_said(n, said):
    found = verdict(scored(base=(BASE * 2)[:n], grpo=(BETTER * 2)[:n]), RULE)
    assert found.note == said


def test_scores_that_differ_by_the_same_on_every_seed_are_said_to_be_no_certainty():
    found = verdict(scored(base=[0.25, 0.5], grpo=[0.5, 0.75]), RULE)
    assert "no spread over seeds" in found.note


def test_pass_and_majority_at_k_are_counted_from_the_completions(tmp_path):
    rows = [
        {"problem": p, "greedy": False, "reward": float(a == "7"), "answer": a}
        for p, said in (("p", "7778"), ("q", "8897"))
        for a in said
    ]
    files.write(tmp_path / "evals" / "000003-test.jsonl", files.jsonl([*rows, {"problem": "p", "greedy": True, "reward": 0.0}]))
    runs = [run("a", s, directory=tmp_path, test__pass_at_1=0.5) for s in (0, 1)]
    assert of(runs, "value", "test/pass@2")[0] == pytest.approx((1 + 1 / 2) / 2)
    assert of(runs, "value", "test/pass@4")[0] == 1
    assert of(runs, "value", "test/maj@4")[0] == 0.5
    with pytest.raises(NotTestable, match="pass@8"):
        of(runs, "value", "test/pass@8")


def test_the_middle_is_that_of_the_budget_that_was_given():
    budget = {"budget": {"flops": None, "sampled_tokens": 100}}
    spent = {"budget__sampled_tokens": [0.0, 10.0, 100.0]}
    runs = [run("a", 0, config=budget, eval__x=[0.0, 0.9, 0.9], **spent), run("b", 0, eval__x=[0.0, 0.0, 0.0])]
    assert of(runs, "late", "eval/x", against=("b",)) == pytest.approx({0: 0.0})
    flops = [run("a", 0, eval__x=[0.0, 0.4, 0.9]), run("b", 0, eval__x=[0.0, 0.0, 0.0])]
    assert of(flops, "late", "eval/x", against=("b",)) == pytest.approx({0: 0.5})


def test_late_is_what_a_difference_gains_after_the_middle():
    runs = [run("a", 0, eval__x=[0.0, 0.2, 0.9]), run("b", 0, eval__x=[0.0, 0.1, 0.3])]
    assert of(runs, "late", "eval/x", against=("b",)) == pytest.approx({0: 0.7 - 0.2})


def test_slope_is_of_the_straight_line_over_the_whole_budget():
    runs = [run("a", 0, eval__x=[1.0, 3.0, 5.0]), run("b", 0, eval__x=[1.0, 1.0, 1.0])]
    assert of(runs, "slope", "eval/x") == pytest.approx({0: 4.0})
    assert of(runs, "slope", "eval/x", against=("b",)) == pytest.approx({0: 4.0})


def test_interaction_is_a_difference_of_differences():
    runs = [run(arm, 0, task=t, test__pass_at_1=v)
            for arm, t, v in (("a", "x", 0.9), ("b", "x", 0.4), ("a", "y", 0.6), ("b", "y", 0.5))]  # fmt: skip
    assert of(runs, "interaction", arms=("a/x", "a/y"), against=("b/x", "b/y")) == pytest.approx({0: 0.4})


def test_a_seeds_own_noise_does_not_choose_where_its_peak_is():
    level = [0.0, 0.0, 0.0, 0.0]
    runs = [run("a", s, eval__x=[*level[:s], 1.0, *level[s + 1 :]]) for s in range(3)]
    assert all(drop <= 0 for drop in of(runs, "drop", "eval/x").values())
    falling = [run("a", s, eval__x=[0.1, 0.5, 0.4, 0.2]) for s in range(3)]
    assert of(falling, "drop", "eval/x") == pytest.approx({0: 0.3, 1: 0.3, 2: 0.3})


def test_a_peak_moves_out_when_it_is_at_more_kl_with_more_pairs():
    curves = {"few": ([0.1, 0.9, 0.2, 0.1], 256.0), "many": ([0.1, 0.2, 0.3, 0.9], 1024.0)}
    kl = [0.0, 0.01, 0.04, 0.09]
    runs = [run(label, s, eval__x=x, eval__kl=kl, reward_model__pairs=n) for label, (x, n) in curves.items() for s in (0, 1)]
    assert of(runs, "peak", "eval/x", arms=("few", "many")) == pytest.approx({0: 0.1, 1: 0.1})


def test_a_frontier_is_the_area_that_one_group_of_arms_has_over_another():
    runs = [run("a", 0, eval__kl=[0.0, 1.0], eval__x=[0.0, 0.5]), run("b", 0, eval__kl=[0.0, 1.0, 2.0], eval__x=[0.0, 0.2, 0.4])]
    assert of(runs, "frontier", "eval/x", arms=("a",), against=("b",)) == pytest.approx({0: 0.3})


def test_a_frontier_of_one_group_alone_is_not_testable():
    runs = [run("a", 0, eval__kl=[0.0, 1.0], eval__x=[0.0, 0.5])]
    for sides in ({"arms": ("a",), "against": ()}, {"arms": (), "against": ("a",)}):
        with pytest.raises(NotTestable, match="frontier takes arms and arms to hold them against"):
            of(runs, "frontier", "eval/x", **sides)


def test_a_frontier_is_drawn_of_seeds_that_all_its_arms_have_finished():
    curve = {"eval__kl": [0.0, 1.0], "eval__x": [0.0, 0.5]}
    runs = [run(label, s, **curve) for label in ("a", "b", "c") for s in (0, 1, 2)]
    runs = [r for r in runs if (r.label, r.seed) != ("c", 1)] + [run("c", 1, status="failed", **curve)]
    assert sorted(of(runs, "frontier", "eval/x", arms=("a",), against=("b", "c"))) == [0, 2]


# the published twelve


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_arms_of_a_published_claim_are_in_its_sweep(path):
    asked = tomllib.loads(path.read_text(encoding="utf-8"))
    for claimed in read(asked["claims"], path.name).values():
        selectors = [s for part in claimed.parts for s in (*part.arms, *part.others)] + [r.arm for r in claimed.requires]
        for selector in selectors:
            rest, _, task = selector.partition("/")
            label, _, model = rest.partition("@")
            assert label in asked["methods"]
            assert not model or model in asked["models"]
            assert not task or task in asked["tasks"]


def test_all_twelve_are_there():
    found = {claimed.number for path in PUBLISHED for claimed in read(tomllib.loads(path.read_text())["claims"], "").values()}
    assert found - {None} == set(range(1, 13))


def test_the_command_prints_verdicts_and_refuses_what_makes_no_claims(tmp_path, cli):
    from synthetic import write_comparison

    write_comparison(tmp_path, "made-up")
    code, _, err = cli("claims", "made-up", "--root", tmp_path)
    assert (code, "makes no claims" in err) == (2, True)
    path = tmp_path / "comparisons" / "made-up" / "comparison.toml"
    path.write_text(
        path.read_text() + '\n[claims.it]\ntext = "t"\nsource = "s"\nparts = [{ arm = "grpo", against = "base", above = 0.0 }]\n'
    )
    code, out, _ = cli("claims", "made-up", "--json", "--root", tmp_path)
    (found,) = json.loads(out)
    assert (code, found["verdict"], found["parts"][0]["outcome"]) == (0, "PASS", "PASS")
    code, out, _ = cli("claims", "made-up", "--root", tmp_path)
    assert out.startswith("PASS          it: t (s)\n")
    assert cli("claims", "made", "--root", tmp_path)[0] == 2


def test_a_claim_on_an_arm_that_the_file_does_not_have_is_refused_by_name():
    table = {"c": {"text": "t", "source": "s", "parts": [{"arm": "grpo@moe", "against": "grpo-rnadom", "above": 0.0}]}}
    with pytest.raises(BakeoffError, match=r"x.toml: claims.c: no arm 'grpo-rnadom' .did you mean 'grpo-random'"):
        read(table, "x.toml", ["base", "grpo", "grpo-random"])
    assert read(table, "x.toml", ["grpo", "grpo-rnadom"])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_claims_of_every_sweep_are_on_arms_that_it_has(path):
    table = tomllib.loads(path.read_text())
    assert read(table["claims"], str(path), table["methods"])
