"""Knights and knaves: knights always tell the truth, knaves always lie; who is what?

    prompt      B:=A A:E- E:G+ G:H+ H:B-?    B says that A is of B's own kind, A that E is a knave, E that G is a knight
    solution    <A+E--G+-H+-B-+>B+A+E-G-H-    one after another: what was said of them, what is true; then all as they spoke
    bands       a tale (told in the order in which they speak of each other; three in five) or a web (in the order of their
                names), of 5 or 6 people;  out of distribution: 7
    chance      1/2 for each person: (2⁻⁵ + 2⁻⁶)/2 = 0.0234 over the bands

"X:=Y" (I am of Y's kind) can be said by knight and knave alike, but only if Y is a knight; "X:#Y" only if Y is a knave.
Every puzzle has one such way in, and from there each statement tells who the next person is: the solution is unique.
"""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

from harness.task import Problem, Task, generated, problem
from tasks._completion import exact, reasoned, thinking

NAMES = "ABCDEFGHIJ"
SIGN = {True: "+", False: "-"}


def draw(rng: Random, ood: bool) -> Problem:
    order = rng.sample(NAMES, 7 if ood else rng.choice((5, 6)))
    knight = {p: rng.random() < 0.5 for p in order}
    first, last = order[0], order[-1]
    said = {last: ("=" if knight[first] else "#") + first}
    thought = [first + SIGN[knight[first]]]
    for p, q in pairwise(order):
        claim = SIGN[knight[p] == knight[q]]
        said[p] = q + claim
        thought.append(q + claim + SIGN[knight[q]])
    shape = rng.choice(("tale", "tale", "tale", "web", "web"))
    speakers = list(said) if shape == "tale" else sorted(said)
    prompt = " ".join(f"{p}:{said[p]}" for p in speakers) + "?"
    answer = "".join(p + SIGN[knight[p]] for p in speakers)
    return problem("knights", prompt, answer, thinking("".join(thought), answer), band=f"{shape} of {len(order)}")


def steps(thought: str) -> list[str]:
    """A person each, with the signs after the name."""
    return re.split(r"(?<=[^A-J])(?=[A-J])", thought)


TASK = Task(
    name="knights",
    summary="five or six knights and knaves make one statement each; say who is what",
    problems=generated("knights", draw),
    verify=reasoned(exact, steps),
    chance=0.0234,
    max_new_tokens=48,
)
