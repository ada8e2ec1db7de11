"""The simulation of docs/statistics.md, and that the intervals are right as often as they say."""

import json
from math import sqrt

import numpy as np
import pytest
from scipy.special import expit, logit

from benchmarks import coverage
from benchmarks.coverage import Arm
from reports.stats import paired, t_interval
from tests.synthetic import write_comparison

N = 500
HARDNESS_N = np.linspace(-4, 3, N)


@pytest.fixture(scope="module")
def pool():
    return coverage.read()


def test_the_pool_is_counts_of_the_same_seeds_and_problems(pool):
    assert set(pool) == {"base", "sft"}
    assert pool["base"].shape == pool["sft"].shape
    assert pool["sft"].shape[0] >= 2 * max(coverage.SEEDS)
    assert pool["sft"].shape[1] == N
    assert set(np.unique(pool["sft"])) == {0, 1, 2}


def test_the_truth_is_what_many_seeds_come_to():
    start = Arm(HARDNESS_N - 1, 0.0, 0.0)
    arm = Arm(HARDNESS_N, 0.4, 0.8, failing=0.25)
    scores_S = arm.draw(np.random.default_rng(0), 3000, start).mean(axis=1)
    assert arm.truth(start).mean() == pytest.approx(scores_S.mean(), abs=4 * scores_S.std() / sqrt(3000))
    assert start.truth(start) == pytest.approx(expit(HARDNESS_N - 1))


def test_a_fit_finds_the_effects_that_the_results_were_drawn_with():
    for seed, mixed in ((0.0, 0.0), (0.2, 0.5)):
        drawn = Arm(HARDNESS_N, seed, mixed).draw(np.random.default_rng(1), 200, Arm(HARDNESS_N, 0.0, 0.0))
        found = coverage.fitted((drawn * 2).astype(int))
        assert found.seed == pytest.approx(seed, abs=0.04)
        assert found.mixed == pytest.approx(mixed, abs=0.12)
        assert np.abs(found.logit_N - HARDNESS_N).mean() < 0.2


def test_an_effect_that_the_samples_explain_alone_is_none():
    right_SN = np.array([[0, 1], [1, 0]] * 20)
    found = coverage.fitted(right_SN)
    assert (found.seed, found.mixed) == (0, 0)
    assert found.logit_N == pytest.approx(logit(20.5 / 81))


def test_a_pool_is_collected_from_the_runs_of_the_seeds_that_both_finished(tmp_path):
    write_comparison(tmp_path, "seeds", ("base", "sft"), seeds=4, problems=12, states={("sft", 1): "failed"})
    pool = coverage.collect(tmp_path)
    assert pool["base"].shape == pool["sft"].shape == (3, 12)
    (rows,) = [path.read_text() for path in tmp_path.glob("runs/*-sft-*-s2-*/evals/*-test.jsonl")]
    right = sum(row["reward"] for row in map(json.loads, rows.splitlines()) if not row["greedy"])
    assert pool["sft"][1].sum() == right


def test_the_percentile_bootstrap_of_three_seeds_is_too_narrow_and_the_simulation_shows_it():
    start = Arm(HARDNESS_N, 0.0, 0.0)
    found = coverage.coverage(Arm(HARDNESS_N + 1, 0.2, 0.5), start, 3, 300)
    assert found["percentile bootstrap over seeds"][0] < 0.85 < found["t over seeds (the headline)"][0]


def test_tables_have_a_row_for_each_interval_and_result(pool):
    lines = list(coverage.tables(pool, 2))
    assert sum(line.startswith("| t over seeds (the headline) |") for line in lines) == len(coverage.scenarios(pool))
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["base", "sft", "sft − base, seed by seed"]
    for table in "\n".join(lines).split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")} | {0}) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["as measured", "seeds two points apart"])
@pytest.mark.parametrize("S", coverage.SEEDS)
def test_the_headline_interval_holds_the_truth_in_93_to_97_percent_of_comparisons(pool, scenario, S):
    arm, start = coverage.scenarios(pool)[scenario]
    level, base = arm.truth(start).mean(), start.truth(start).mean()
    random = np.random.default_rng(S)
    held, held_level = [], []
    for _ in range(3000):
        values, bases = (dict(enumerate(a.draw(random, S, start).mean(axis=1))) for a in (arm, start))
        held.append(not paired(values, bases).excludes(level - base))
        held_level.append(not t_interval(values.values()).excludes(level))
    assert 0.93 <= np.mean(held) <= 0.97
    assert 0.93 <= np.mean(held_level) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", coverage.SEEDS)
def test_a_method_differs_from_itself_rarely_and_from_a_planted_difference_nearly_always(pool, n):
    for scores_SN in (pool["base"] / 2, pool["sft"] / 2, (pool["sft"] - pool["base"]) / 2):
        alarm, _, found = coverage.against_itself(scores_SN, n, 2000)
        assert alarm <= 0.065
        assert found >= 0.9
