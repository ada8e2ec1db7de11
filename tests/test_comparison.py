"""A TOML file becomes the same runs, under the same names, every time."""

import json
import re
import tomllib
from dataclasses import asdict, fields, replace

import pytest
from conftest import SMOKE, config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from harness.comparison import Comparison, Evaluation, RunConfig, apply
from harness.errors import BakeoffError
from harness.meter import Budget, Meter

CHANGED = {
    "label": "other",
    "method": "grpo",
    "task": "arithmetic",
    "model": "dense",
    "base": "smoke-00000000",
    "start": "knights-other-smoke-s0-00000000",
    "others": {"teacher": "teacher-00000000"},
    "problems": "00000000",
    "seed": 1,
    "budget": Budget(steps=7),
    "evaluation": Evaluation(points=3),
    "options": {"lr": 0.5},
    "threads": 2,
    "device": "cuda",
    "dtype": "bfloat16",
    "micro_batch": 128,
    "engine": "vllm",
}


def test_the_matrix_holds_every_method_task_model_and_seed_once(tmp_path):
    comparison = Comparison.load(SMOKE, ['tasks=["arithmetic", "knights"]', 'models=["smoke", "dense"]', "seeds=[0, 1, 5]"])
    runs = comparison.runs(tmp_path)
    cells = {(run.label, run.task, run.model, run.seed) for run in runs}
    assert len(cells) == len(runs) == len({run.id for run in runs}) == len(comparison.methods) * 2 * 2 * 3


def test_runs_of_a_comparison_differ_in_nothing_but_the_method(tmp_path):
    of_a_seed = [run for run in Comparison.load(SMOKE).runs(tmp_path) if run.seed == 0]
    assert len(of_a_seed) == len(Comparison.load(SMOKE).methods)
    own = {"label": "", "method": "", "options": {}, "start": "", "others": {}}
    assert len({json.dumps(asdict(replace(run, **own))) for run in of_a_seed}) == 1


@pytest.mark.parametrize("field", [f.name for f in fields(RunConfig)])
def test_a_configuration_that_differs_anywhere_is_another_directory(tmp_path, field):
    config = config_of(tmp_path)
    assert replace(config, **{field: CHANGED[field]}).id != config.id


def test_the_same_configuration_is_always_the_same_directory(tmp_path):
    first, second = (Comparison.load(SMOKE).runs(tmp_path / name) for name in ("a", "b"))
    assert [run.id for run in first] == [run.id for run in second]
    reordered = Comparison.load(SMOKE, ['methods.sft={prompts=16, lr=3e-3, method="sft"}']).runs(tmp_path)
    assert [run.id for run in reordered] == [run.id for run in first]
    assert all(re.fullmatch(r"knights-[a-z0-9-]+-smoke-s[01]-[0-9a-f]{8}", run.id) for run in first)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**40),
    flops=st.floats(1e-300, 1e300),
    lr=st.floats(1e-300, 1e300),
    label=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True),
    others=st.lists(st.sampled_from(["knights", "programs"]), unique=True),
)
def test_a_configuration_survives_its_json(seed, flops, lr, label, others):
    config = RunConfig(
        label=label,
        method="sft",
        task="arithmetic",
        model="smoke",
        base="smoke-0",
        problems="0",
        seed=seed,
        budget=Budget(flops=flops),
        evaluation=Evaluation(other_tasks=tuple(others)),
        options={"lr": lr},
    )
    read = TypeAdapter(RunConfig).validate_python(json.loads(json.dumps(asdict(config), indent=2)))
    assert read == config
    assert read.id == config.id


def test_a_task_is_not_its_own_forgetting(tmp_path):
    overrides = ['tasks=["arithmetic", "knights"]', 'evaluation.other_tasks=["knights", "programs"]']
    runs = Comparison.load(SMOKE, overrides).runs(tmp_path)
    assert {(run.task, run.evaluation.other_tasks) for run in runs} == {
        ("arithmetic", ("knights", "programs")),
        ("knights", ("programs",)),
    }


def test_overrides_reach_where_they_point_with_the_type_that_toml_gives_them():
    overrides = ["budget.flops=1e9", "seeds=[4, 5]", "methods.grpo.beta=0.5", "question=is it so?", "evaluation.test_problems=0"]
    comparison = Comparison.load(SMOKE, overrides)
    assert comparison.budget.flops == 1e9
    assert comparison.seeds == (4, 5)
    assert comparison.methods["grpo"]["beta"] == 0.5
    assert comparison.methods["grpo-random"]["beta"] == tomllib.loads(SMOKE.read_text())["methods"]["grpo-random"]["beta"]
    assert comparison.question == "is it so?"
    assert comparison.evaluation.test_problems == 0
    assert comparison.name == "smoke"


def test_an_override_may_add_an_arm(tmp_path):
    comparison = Comparison.load(SMOKE, ["methods.sft-slow.method=sft", "methods.sft-slow.lr=1e-4"])
    assert comparison.methods["sft-slow"] == {"method": "sft", "lr": 1e-4}
    assert len(comparison.runs(tmp_path)) == 2 * len(comparison.methods)


@pytest.mark.parametrize("override", ["", "=", "a", "a.b=1", "a.b.c=1"])
def test_an_override_that_has_no_place_leaves_the_table_as_it_was(override):
    table = {"a": 3}
    with pytest.raises(BakeoffError, match=re.escape(repr(override))):
        apply(table, override)
    assert table == {"a": 3}


def test_the_options_build_the_method_and_leave_the_rest_at_its_default(tmp_path):
    from methods.grpo import GRPO

    method = config_of(tmp_path, method="grpo", group=3, beta=0.0).build()
    assert isinstance(method, GRPO)
    assert (method.group, method.beta, method.clip) == (3, 0.0, GRPO().clip)


def test_the_budget_that_is_spent_first_ends_the_run():
    meter = Meter()
    meter.sample(10, 30, 2)
    meter.train(50, 2)
    assert Budget(sampled_tokens=60).spent(meter, 0) == 0.5
    assert Budget(flops=2 * 40 + 6 * 50).spent(meter, 0) == 1
    assert Budget(sampled_tokens=60, trained_tokens=50, steps=100).spent(meter, 3) == 1
    assert Budget(steps=4).spent(meter, 3) == 0.75


@pytest.mark.parametrize(("given", "written"), [("methods.sft.lr=1", "methods.sft.lr=1.0"), ("budget.flops=5_000_000_000", "")])
def test_the_same_number_written_another_way_is_the_same_run(tmp_path, given, written):
    ids = [[run.id for run in Comparison.load(SMOKE, [o] if o else []).runs(tmp_path)] for o in (given, written)]
    assert ids[0] == ids[1]


def arms(name):
    table = tomllib.loads((SMOKE.parent / f"{name}.toml").read_text())
    return table["methods"], table["budget"], {k: v for k, v in table["evaluation"].items() if k != "other_tasks"}


CONTROLS = {"grpo-format", "dpo-shuffled", "self-teacher", "best-of-8", "again"}


def test_the_methods_sweep_asks_what_the_quickstart_asks_of_more_tasks_and_seeds_and_has_every_control():
    (methods, *settings), (quick, *same) = arms("methods"), arms("quickstart")
    assert settings == same
    assert {label: table for label, table in methods.items() if label not in CONTROLS} == quick
    assert methods.keys() - quick.keys() == CONTROLS


def test_the_stages_share_their_first_arms_with_the_quickstart():
    (stages, *rest), (quickstart, *same) = arms("stages"), arms("quickstart")
    assert rest == same
    assert all(stages[arm] == quickstart[arm] for arm in ("base", "sft", "grpo"))


def test_every_method_had_as_many_trials_and_the_quickstart_uses_one_of_them():
    trials, quickstart = arms("tuning")[0], arms("quickstart")[0]
    tuned = [arm for arm in quickstart if arm not in ("base", "grpo-random")]
    counts = {arm: [t for name, t in trials.items() if re.fullmatch(rf"{arm}-\d.*", name)] for arm in tuned}
    assert {arm: len(found) for arm, found in counts.items()} == dict.fromkeys(tuned, 4)
    assert sum(map(len, counts.values())) == len(trials)
    assert all(quickstart[arm] in found for arm, found in counts.items())
    assert {k: v for k, v in quickstart["grpo-random"].items() if k != "source"} == quickstart["grpo"]
