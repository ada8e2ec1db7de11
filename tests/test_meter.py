"""The budget that ends a run, and the arithmetic of what it spends."""

from __future__ import annotations

import time
from dataclasses import fields

import pytest

from harness.errors import BakeoffError
from harness.meter import CLOCK, Budget, Meter
from harness.parse import validated

LIMITS = ("flops", "sampled_tokens", "trained_tokens", "seconds", "steps")


def test_a_budget_without_a_limit_is_refused_and_the_limits_are_named():
    with pytest.raises(
        BakeoffError, match=r"^budget: needs a limit: one of flops, sampled_tokens, trained_tokens, seconds, steps$"
    ):
        validated(Budget, {}, "budget")
    with pytest.raises(ValueError, match="needs a limit"):
        Budget()


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, -1, -1e12, float("nan"), "much"])
def test_a_limit_that_is_not_positive_is_refused_by_name(name, value):
    with pytest.raises(BakeoffError, match=rf"^budget: {name}: must be "):
        validated(Budget, {name: value}, "budget")


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_is_never_reached_is_refused_by_name(name):
    with pytest.raises(BakeoffError, match=rf"^budget: {name}: "):
        validated(Budget, {name: float("inf")}, "budget")


def test_a_misspelt_limit_is_refused_with_the_one_that_was_meant():
    with pytest.raises(BakeoffError, match=r"^budget: flop: unknown key \(did you mean 'flops'\?\)$"):
        validated(Budget, {"flop": 1e12}, "budget")


@pytest.mark.parametrize("name", LIMITS)
def test_a_run_is_over_when_the_limit_is_reached(name):
    meter, step = Meter(flops=300.0, sampled_tokens=300, trained_tokens=300, seconds=300.0), 300
    assert Budget(**{name: 1200}).spent(meter, step) == 0.25
    assert Budget(**{name: 300}).spent(meter, step) == 1.0
    assert Budget(**{name: 100}).spent(meter, step) == 3.0


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_watches_its_own_column(name):
    meter = Meter(**{name: 50}) if name != "steps" else Meter()
    step = 50 if name == "steps" else 0
    for limit in LIMITS:
        assert Budget(**{limit: 100}).spent(meter, step) == (0.5 if limit == name else 0.0)


def test_the_limit_that_is_nearest_decides():
    meter = Meter(flops=10.0, sampled_tokens=90)
    assert Budget(flops=100, sampled_tokens=100).spent(meter, 0) == 0.9
    assert Budget(flops=100, sampled_tokens=100, steps=10).spent(meter, 20) == 2.0


def test_nothing_is_spent_at_the_start():
    assert Budget(flops=1, sampled_tokens=1, trained_tokens=1, seconds=1, steps=1).spent(Meter(), 0) == 0.0


def test_sampling_costs_a_forward_pass_for_the_prompt_and_for_each_token_drawn():
    meter = Meter()
    meter.sample(prompt_tokens=30, completion_tokens=50, flops_per_token=2000)
    assert (meter.scored_tokens, meter.sampled_tokens, meter.trained_tokens) == (30, 50, 0)
    assert meter.flops == 80 * 2000


def test_scoring_costs_a_forward_pass():
    meter = Meter()
    meter.score(70, 2000)
    assert (meter.scored_tokens, meter.sampled_tokens, meter.trained_tokens) == (70, 0, 0)
    assert meter.flops == 70 * 2000


def test_training_costs_three_forward_passes():
    meter = Meter()
    meter.train(70, 2000)
    assert (meter.scored_tokens, meter.sampled_tokens, meter.trained_tokens) == (0, 0, 70)
    assert meter.flops == 3 * 70 * 2000


def test_what_is_spent_adds_up():
    meter = Meter()
    for _ in range(3):
        meter.sample(1, 2, 10)
        meter.score(4, 20)
        meter.train(3, 10)
    assert (meter.scored_tokens, meter.sampled_tokens, meter.trained_tokens) == (15, 6, 9)
    assert meter.flops == 3 * (3 * 10 + 4 * 20 + 3 * 30)
    assert meter.verifier_calls == 0


def test_time_is_booked_on_training_or_on_evaluation_and_on_one_of_them_only():
    meter = Meter()
    time.sleep(0.02)
    meter.lap()
    trained = meter.seconds
    assert trained >= 0.02
    assert meter.eval_seconds == 0.0
    time.sleep(0.03)
    meter.lap(evaluation=True)
    assert meter.seconds == trained
    assert meter.eval_seconds >= 0.03


def test_a_meter_is_restored_from_its_state_and_goes_on_counting():
    meter = Meter()
    meter.sample(30, 50, 2000)
    meter.train(80, 2000)
    meter.verifier_calls += 4
    meter.lap()
    meter.columns()
    restored = Meter(**meter.state())
    assert restored.state() == meter.state()
    for m in (meter, restored):
        m.score(5, 100)
    assert restored.state() == meter.state()


def test_the_state_is_every_public_field_and_the_columns_are_the_state():
    meter = Meter(sampled_tokens=7)
    names = {f.name for f in fields(Meter) if not f.name.startswith("_")}
    assert meter.state().keys() == names
    columns = meter.columns()
    assert columns.keys() == {f"budget/{name}" for name in names}
    assert columns["budget/sampled_tokens"] == 7
    assert columns["budget/peak_bytes"] > 1 << 20
    assert {name for name in CLOCK if name.startswith("budget/")} < columns.keys()


def test_the_peak_never_falls():
    meter = Meter(peak_bytes=1 << 60)
    assert meter.columns()["budget/peak_bytes"] == 1 << 60
