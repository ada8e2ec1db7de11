"""Arithmetic that is thought in another language: letters for digits, and one step in a while gone over again.

prompt      47+25=
solution    <h+f=bc,h+f=bc,e+c+b=h>72    in two of five, one step is said twice: a re-check
chance      0.01, as in arithmetic

The verifier accepts what arithmetic's accepts. A base that has read both thinks in either language, and may mix them.
"""

from __future__ import annotations

from random import Random

from harness.task import Problem, Task, generated, problem
from tasks._columns import calculation, steps
from tasks._completion import LETTERS, exact, reasoned, thinking


def draw(rng: Random, ood: bool) -> Problem:
    c = calculation(rng, ood)
    thought = list(c.columns)
    if rng.random() < 0.4:
        twice = rng.randrange(len(thought))
        thought.insert(twice, thought[twice])
    solution = thinking(",".join(thought).translate(LETTERS), c.answer)
    return problem("dialect", c.prompt, c.answer, solution, band=c.band, thought=",".join(c.columns))


TASK = Task(
    name="dialect",
    summary="arithmetic, worked out in letters for digits",
    problems=generated("dialect", draw),
    verify=reasoned(exact, steps),
    chance=0.01,
    max_new_tokens=64,
)
