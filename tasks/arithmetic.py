"""Multi-digit addition, subtraction and multiplication, worked out column by column.

prompt      47+25=
solution    <7+5=12,4+2+1=7>72
bands       digits of the longer operand, 2 (two in three) or 3;  out of distribution: 3 digits with a carry (a loan) out of
            every column but the last, of which there are none in the other splits
chance      0.01: a number of the right length, drawn evenly
"""

from __future__ import annotations

from random import Random

from harness.task import Problem, Task, generated, problem
from tasks._columns import calculation, steps
from tasks._completion import exact, reasoned, thinking


def draw(rng: Random, ood: bool) -> Problem:
    c = calculation(rng, ood)
    return problem("arithmetic", c.prompt, c.answer, thinking(",".join(c.columns), c.answer), band=c.band)


TASK = Task(
    name="arithmetic",
    summary="add, subtract and multiply numbers of two and three digits",
    problems=generated("arithmetic", draw),
    verify=reasoned(exact, steps),
    chance=0.01,
    max_new_tokens=64,
)
