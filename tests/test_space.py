"""Ranges beside a method's defaults: what they draw, what they refuse, and that they change nothing else."""

from dataclasses import dataclass, fields
from typing import Annotated

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import plugins
from harness.errors import BakeoffError
from harness.method import Positive
from harness.parse import validated
from harness.space import Choice, Integer, LogUniform, PowersOfTwo, Uniform, declared, read, written

finite = st.floats(-1e9, 1e9)


def two(numbers):
    return st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)


ranges = st.one_of(
    two(finite).map(lambda ends: Uniform(*ends)),
    two(st.floats(1e-9, 1e9)).map(lambda ends: LogUniform(*ends)),
    two(st.integers(-1000, 1000)).map(lambda ends: Integer(*ends)),
    two(st.integers(0, 20)).map(lambda ends: PowersOfTwo(2 ** ends[0], 2 ** ends[1])),
    st.lists(st.text(max_size=3), min_size=2, unique=True).map(lambda values: Choice(tuple(values))),
)


def inside(range_, value):
    if isinstance(range_, Choice):
        return value in range_.values
    power = not isinstance(range_, PowersOfTwo) or value & (value - 1) == 0
    return range_.low <= value <= range_.high and power


@settings(deadline=None, max_examples=60)
@given(ranges, st.integers(0, 99))
def test_what_is_drawn_lies_inside_and_stays_what_it_was(range_, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    value = range_.suggest(trial, "x")
    assert inside(range_, value)
    assert range_.suggest(optuna.trial.Trial(study, trial._trial_id), "x") == value
    assert list(trial.params) == [range_.drawn_as("x")]


@settings(deadline=None)
@given(ranges)
def test_a_range_is_read_as_it_is_written(range_):
    assert read(written(range_)) == range_


@settings(deadline=None)
@given(ranges, st.integers(2, 9))
def test_a_grid_has_different_values_from_end_to_end(range_, n):
    values = range_.grid(n)
    assert len(set(values)) == len(values) >= 2
    assert isinstance(range_, Choice) or len(values) <= n
    drawn = [2**v for v in values] if isinstance(range_, PowersOfTwo) else values
    assert all(inside(range_, v) for v in drawn)
    assert {drawn[0], drawn[-1]} <= set(range_.ends()) or isinstance(range_, Choice)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uniform(1.0, 0.5), "minimum 1 is above the maximum 0.5"),
        (lambda: Uniform(0.5, 0.5), "empty range"),
        (lambda: Uniform(float("nan"), 1.0), "empty range"),
        (lambda: LogUniform(0.0, 1.0), "starts above 0, not at 0"),
        (lambda: LogUniform(-1.0, 1.0), "starts above 0, not at -1"),
        (lambda: Integer(3, 3), "empty range"),
        (lambda: PowersOfTwo(2, 12), "12 is no power of two"),
        (lambda: PowersOfTwo(0, 4), "0 is no power of two"),
        (lambda: Choice(()), "empty range"),
        (lambda: Choice(("a", "a")), "empty range"),
    ],
)
def test_a_range_of_nothing_is_refused(make, said):
    with pytest.raises(BakeoffError, match=said):
        make()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"log_unifrom": [1, 2]}, "must be a table of one key"),
        ({}, "must be a table of one key"),
        ([1, 2], "must be a table of one key"),
        ({"uniform": [1, 2], "integer": [1, 2]}, "must be a table of one key"),
        ({"uniform": 1}, "must be a list"),
        ({"uniform": [1, 2, 3]}, r"must be \[minimum, maximum\]"),
        ({"uniform": ["a", "b"]}, "must be a valid number"),
        ({"uniform": [0, float("inf")]}, "must be a finite number"),
        ({"integer": [1, 2.5]}, "must be a valid integer"),
        ({"choice": [1]}, "empty range"),
    ],
)
def test_a_table_that_is_no_range_is_refused(table, said):
    with pytest.raises(BakeoffError, match=said):
        read(table)


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_every_value_of_a_declared_range_is_allowed(name):
    method = plugins.find("methods", name)
    for option, range_ in declared(method).items():
        for end in range_.ends():
            assert getattr(validated(method, {option: end}, name), option) == end


def test_a_range_changes_no_default_and_no_check():
    @dataclass
    class Plain:
        lr: Positive = 1e-6

    @dataclass
    class Ranged:
        lr: Annotated[Positive, LogUniform(1e-5, 1e-2)] = 1e-6

    assert Ranged() == Ranged(1e-6)
    assert [f.default for f in fields(Ranged)] == [f.default for f in fields(Plain)]
    assert validated(Ranged, {"lr": 7.0}, "x").lr == validated(Plain, {"lr": 7.0}, "x").lr == 7.0
    with pytest.raises(BakeoffError, match="lr: must be greater than 0"):
        validated(Ranged, {"lr": 0}, "x")


def test_the_methods_declare_what_their_papers_vary():
    known = {name: declared(plugins.find("methods", name)) for name in plugins.names("methods")}
    assert {"beta", "clip", "group", "lr"} <= known["grpo"].keys()
    assert {"beta", "clip", "lam", "lr"} <= known["ppo"].keys()
    assert {"beta", "lr"} <= known["dpo"].keys()
    assert {"prompts", "lr"} <= known["sft"].keys()
    assert {"alpha", "temperature", "lr"} <= known["distill"].keys()
    assert known["base"] == {}
