"""Knights and knaves: knights always tell the truth, knaves always lie; who is what?

    prompt      A:D#G D:D=J E:G- G:D- J:E+?      A says that D and G differ, D that J is of D's own kind, E that G is a knave
    solution    <J+E+G-D+A+>A+D+E+G-J+           who is what in the order it can be deduced, then by name
    bands       5 and 6 people;  out of distribution: 7
    chance      1/2 for each person: (2⁻⁵ + 2⁻⁶)/2 = 0.0234 over the bands

"X:X=Y" (I am of Y's kind) is true of a knight and false of a knave only if Y is a knight; "X:X#Y" only if Y is a knave:
every puzzle has one such way in, and all the rest follows one person at a time, so the solution is unique.
"""

from __future__ import annotations

from random import Random

from harness.task import Problem, Task, Verdict, generated, problem
from tasks._completion import exact, thinking

NAMES = "ABCDEFGHIJ"

Statement = tuple[str, str, str]  # (about, + or - or = or #, about): "B is a knight" is ("B", "+", "B")


def draw(rng: Random, ood: bool) -> Problem:
    people = sorted(rng.sample(NAMES, 7 if ood else rng.choice((5, 6))))
    knight = {p: rng.random() < 0.5 for p in people}
    while True:
        said = statements(rng, people, knight)
        order = deduce(said)
        if len(order) == len(people):
            break
    sign = {p: "+" if knight[p] else "-" for p in people}
    answer = "".join(p + sign[p] for p in people)
    prompt = " ".join(f"{p}:{spoken(said[p])}" for p in people) + "?"
    thought = "".join(p + sign[p] for p in order)
    return problem("knights", prompt, answer, thinking(thought, answer), band=f"{len(people)} people")


def statements(rng: Random, people: list[str], knight: dict[str, bool]) -> dict[str, Statement]:
    """One statement each, true if a knight says it and false if a knave does."""
    said = dict[str, Statement]()
    way_in = rng.choice(people)
    for p in people:
        others = [q for q in people if q != p]
        if p == way_in:
            q = rng.choice(others)
            said[p] = (p, "=" if knight[q] else "#", q)
        elif rng.random() < 0.75:
            q = rng.choice(others)
            said[p] = (q, "+" if knight[p] == knight[q] else "-", q)
        else:
            q, r = rng.sample(others, 2)
            said[p] = (q, "=" if knight[p] == (knight[q] == knight[r]) else "#", r)
    return said


def spoken(statement: Statement) -> str:
    q, relation, r = statement
    return q + relation + (r if relation in "=#" else "")


def deduce(said: dict[str, Statement]) -> list[str]:
    """The people in the order in which who they are follows; fewer than all if the puzzle leaves some open.

    A statement ties its speaker to the people it is about: once all but one of those are known, so is the last.
    """
    tied = [{p, q} if relation in "+-" else {p} ^ {q} ^ {r} for p, (q, relation, r) in said.items()]
    known = list[str]()
    progress = True
    while progress:
        progress = False
        for people in tied:
            unknown = people - set(known)
            if len(unknown) == 1:
                known += unknown
                progress = True
    return known


def verify(problem: Problem, completion: str) -> Verdict:
    return exact(completion, problem.answer)


TASK = Task(
    name="knights",
    summary="five or six knights and knaves make one statement each; say who is what",
    problems=generated("knights", draw),
    verify=verify,
    chance=0.0234,
    max_new_tokens=48,
)
