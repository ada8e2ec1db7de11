"""Programs: what is executed, what it must return, and that the examples leave one program."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.task import Problem
from tasks.programs import HELD_OUT, TASK


def reward(completion: str, i: int = 0) -> float:
    return TASK.verify(TASK.problems("test")[i], completion).reward


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=60) | st.text("0123456789x+-*/%(),.<> \ndefreturn:=", max_size=30))
def test_any_text_is_judged_when_it_is_executed(text):
    p = Problem("", "0:1 1:8 2:27?", "x*x*x+3*x*x+3*x+1", "", {"inputs": (0, 1, 2, 3, 4)})
    verdict = TASK.judge(p, text, truncated=False)
    assert verdict.reward == 0.0
    assert verdict.reason


def test_an_equivalent_program_is_right():
    for i in range(3):
        gold = TASK.problems("test")[i].answer
        for program in (
            f"({gold})*1",
            f" {gold}\n",
            f"sum([{gold}])",
            f"def f(x):\n    return {gold}",
            f"def f(x):\n    y = 0\n    while y != {gold}:\n        y += 1 if y < {gold} else -1\n    return y",
        ):
            verdict = TASK.verify(TASK.problems("test")[i], program)
            assert verdict.correct, (program, verdict)


def test_a_table_of_the_five_examples_fails_on_the_held_out_inputs():
    for i in range(5):
        p = TASK.problems("test")[i]
        table = dict(map(int, pair.split(":")) for pair in p.prompt.rstrip("?").split())
        assert len(table) == 5
        for program in (f"{table}[x]", f"{table}.get(x, 0)", f"{table}.get(x, {max(table.values())})"):
            assert reward(program, i) == 0.0


def test_each_held_out_input_counts():
    p = TASK.problems("test")[0]
    for x in {*HELD_OUT, *p.meta["inputs"]}:
        verdict = TASK.verify(p, f"({p.answer})+(x=={x})")
        assert verdict.reward == 0.0
        assert f"f({x})" in verdict.reason


def test_most_held_out_inputs_are_not_in_any_prompt():
    shown = {x for i in range(200) for x in TASK.problems("test")[i].meta["inputs"]}
    assert len(set(HELD_OUT) - shown) >= 5


@pytest.mark.parametrize(
    "written", ["({})*1.0", "({})/1", "float({})", "str({})", "[{}]", "({})+0j", "lambda x: {}", "{} if x < 20 else None"]
)
def test_a_value_that_is_not_an_integer_is_wrong(written):
    assert reward(written.format(TASK.problems("test")[0].answer)) == 0.0


def test_a_boolean_is_not_the_integer_that_it_equals():
    p = Problem("", "", "(x+1)*(x+1)-x*x-2*x", "", {"inputs": (0, 1, 2)})
    assert TASK.verify(p, "1").correct
    assert TASK.verify(p, "x == x").reward == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.system('true')",
        "import sys; sys.exit(0)",
        "f = 3",
        "def g(x): return {gold}",
        "def f(): return {gold}",
        "def f(x): pass",
        "def f(x): return f(x)",
        "def f(x): raise SystemExit(0)",
        "print({gold})",
        "x = 1",
        "expected",
        "problem.answer",
        "__import__('os')._exit(0)",
        "x**x**x**x**x if x == 31 else {gold}",
    ],
)
def test_a_program_that_does_not_define_the_function_is_wrong(program):
    assert reward(program.replace("{gold}", TASK.problems("test")[0].answer)) == 0.0


def family() -> Iterator[str]:
    """Every program that a train or test problem may have, written from the docstring's five forms."""
    for a, b in product(range(2, 10), range(-9, 31)):
        for slope in (a, -a):
            yield f"{slope}*x{b:+d}"
            yield f"x*x{slope:+d}*x{b:+d}"
        yield from (f"{a}*abs(x-{turn}){b:+d}" for turn in range(1, 7))
        yield from (f"x//{every}*{a}{b:+d}" for every in (2, 3))
    for a in range(2, 10):
        yield from (f"({a}*x+{r})%{m}" for m in range(a + 1, 2 * a + 1) for r in range(m))


def test_the_five_examples_leave_one_function_of_the_family_but_for_one_problem_in_a_hundred():
    xs = sorted({*range(10), *HELD_OUT})
    by_start = defaultdict[tuple[int, ...], dict[str, dict[int, int]]](dict)
    for program in family():
        code = compile(program, "<family>", "eval")
        values = {x: eval(code, {"x": x}) for x in xs}
        by_start[values[0], values[1], values[2]][program] = values
    ambiguous = dict[str, list[str]]()
    for p in TASK.problems("test"):
        shown = {x: eval(p.answer, {"x": x}) for x in p.meta["inputs"]}
        alike = by_start[shown[0], shown[1], shown[2]]
        gold = alike[p.answer]
        fits = [
            q for q, v in alike.items() if all(v[x] == y for x, y in shown.items()) and any(v[x] != gold[x] for x in HELD_OUT)
        ]
        if fits:
            ambiguous[f"{p.prompt} {p.answer}"] = fits
    assert len(ambiguous) <= 0.01 * len(TASK.problems("test")), (
        f"{len(ambiguous)} problems have another answer that fits their examples: {ambiguous}"
    )


def test_the_stated_chance_of_programs_is_not_below_that_of_another_problems_program():
    train, inputs = TASK.problems("train"), (*range(10), *HELD_OUT)
    guesses = Counter(computed(train[i].answer, inputs) for i in Random(0).sample(range(len(train)), 4000))
    tests = TASK.problems("test")
    measured = sum(guesses[computed(p.answer, inputs)] for p in tests) / (4000 * len(tests))
    assert measured <= TASK.chance, f"a guesser is right {measured:.5f} of the time"


def computed(program: str, inputs: tuple[int, ...]) -> tuple[int, ...]:
    code = compile(program, "<program>", "eval")
    return tuple(eval(code, {"x": x}) for x in inputs)
