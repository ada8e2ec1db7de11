"""Sums of long numbers, worked out column by column: the same skill as in arithmetic, over more tokens.

prompt      739121+48075=
solution    <1+5=6,2+7=9,1+0=1,9+8=17,3+4+1=8,7=7>787196
bands       digits of the longer number, 5 or 6;  out of distribution: 7
chance      0.0001: a number of the right length whose first digits are right
"""

from __future__ import annotations

from random import Random

from harness.task import Problem, Task, generated, problem
from tasks._columns import add, number, shuffled, steps
from tasks._completion import exact, reasoned, thinking


def draw(rng: Random, ood: bool) -> Problem:
    digits = 7 if ood else rng.choice((5, 6))
    longer, other = number(rng, digits), number(rng, rng.randint(digits - 1, digits))
    a, b = shuffled(rng, longer, other)
    solution = thinking(",".join(add(a, b)), str(a + b))
    return problem("sums", f"{a}+{b}=", str(a + b), solution, band=f"{digits} digits")


TASK = Task(
    name="sums",
    summary="add numbers of five and six digits",
    problems=generated("sums", draw),
    verify=reasoned(exact, steps),
    chance=0.0001,
    max_new_tokens=96,
)
