"""Arithmetic: the sums, the columns they are worked out in, and what is kept for ood."""

from __future__ import annotations

import re
from random import Random
from typing import get_args

import pytest

from harness.task import Split
from tasks.arithmetic import TASK

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.mark.parametrize("split", SPLITS)
def test_the_sum_is_right_and_every_step_of_its_thought_is_true(split):
    for p in TASK.problems(split)[:300]:
        assert int(p.answer) == eval(p.prompt.rstrip("="))
        columns = p.solution[1 : p.solution.index(">")].split(",")
        for column in columns:
            left, _, right = column.partition("=")
            assert eval(left) == int(right), p
        assert len(columns) == len(max(re.findall(r"\d+", p.prompt), key=len))


def test_the_columns_spell_the_answer():
    for p in TASK.problems("test")[:300]:
        columns = [c.partition("=")[2] for c in p.solution[1 : p.solution.index(">")].split(",")]
        assert int("".join([columns[-1], *(c[-1] for c in columns[-2::-1])])) == int(p.answer)


def test_the_stated_chance_of_arithmetic_is_that_of_a_number_of_the_right_length():
    rng = Random(0)
    right = 0
    for p in TASK.problems("test"):
        n = len(p.answer)
        lowest = 10 ** (n - 1) if n > 1 else 0
        right += sum(TASK.verify(p, str(rng.randrange(lowest, 10**n))).correct for _ in range(40))
    measured = right / (40 * 500)
    assert TASK.chance / 3 <= measured <= TASK.chance * 3, f"a guesser is right {measured:.4f} of the time"


def carried(p):
    columns = p.solution[1 : p.solution.index(">")].split(",")
    return len(columns) == 3 and all(re.search(r"[0-9]{2}", column) for column in columns[:-1])


def test_three_digits_that_carry_everywhere_are_kept_for_ood():
    assert all(carried(p) for p in TASK.problems("ood"))
    assert not any(carried(p) for split in ("train", "validation", "test") for p in TASK.problems(split)[:500])
