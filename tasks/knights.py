"""Knights and knaves: knights always tell the truth, knaves always lie; who is what?

    prompt      B:=A A:E- E:G+ G:H+ H:B-?    B says that A is of B's own kind, A that E is a knave, E that G is a knight
    solution    <A+E-G-H-B+>A+B+E-G-H-       who is what in the order it can be deduced, then by name
    bands       a tale (everyone speaks of the next, in that order) or a web (anyone of anyone), of 5 or 6 people;
                out of distribution: 7
    chance      1/2 for each person: (2⁻⁵ + 2⁻⁶)/2 = 0.0234 over the bands

"X:=Y" (I am of Y's kind) can be said by knight and knave alike, but only if Y is a knight; "X:#Y" only if Y is a knave:
every puzzle has one such way in, and all the rest follows one person at a time, so the solution is unique.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from harness.task import Problem, Task, Verdict, generated, problem
from tasks._completion import exact, thinking

NAMES = "ABCDEFGHIJ"

Statement = tuple[str, str, str]  # (about, + or - or = or #, about): "B is a knight" is ("B", "+", "B")


def draw(rng: Random, ood: bool) -> Problem:
    people = sorted(rng.sample(NAMES, 7 if ood else rng.choice((5, 6))))
    knight = {p: rng.random() < 0.5 for p in people}
    shape = rng.choice((tale, tale, web))
    while True:
        said = shape(rng, people, knight)
        order = deduce(said)
        if len(order) == len(people):
            break
    sign = {p: "+" if knight[p] else "-" for p in people}
    answer = "".join(p + sign[p] for p in people)
    prompt = " ".join(f"{p}:{spoken(p, statement)}" for p, statement in said.items()) + "?"
    thought = "".join(p + sign[p] for p in order)
    return problem("knights", prompt, answer, thinking(thought, answer), band=f"{shape.__name__} of {len(people)}")


def tale(rng: Random, people: list[str], knight: dict[str, bool]) -> dict[str, Statement]:
    """The last gives the first away, and everyone else speaks of the next."""
    order = rng.sample(people, len(people))
    return {order[-1]: way_in(order[-1], order[0], knight)} | {p: about(p, q, knight) for p, q in pairwise(order)}


def web(rng: Random, people: list[str], knight: dict[str, bool]) -> dict[str, Statement]:
    """One gives somebody away; the others speak of anyone, or compare two."""
    said = dict[str, Statement]()
    opener = rng.choice(people)
    for p in people:
        q, r = rng.sample([other for other in people if other != p], 2)
        if p == opener:
            said[p] = way_in(p, q, knight)
        elif rng.random() < 0.75:
            said[p] = about(p, q, knight)
        else:
            said[p] = (q, "=" if knight[p] == (knight[q] == knight[r]) else "#", r)
    return said


def about(p: str, q: str, knight: dict[str, bool]) -> Statement:
    """What p says of q: true from a knight, false from a knave."""
    return (q, "+" if knight[p] == knight[q] else "-", q)


def way_in(p: str, q: str, knight: dict[str, bool]) -> Statement:
    """p compares q with p itself: whoever p is, that tells what q is."""
    return (p, "=" if knight[q] else "#", q)


def spoken(p: str, statement: Statement) -> str:
    """The statement as p writes it, without p's own name."""
    q, relation, r = statement
    return (q if q != p else "") + relation + (r if relation in "=#" else "")


def deduce(said: dict[str, Statement]) -> list[str]:
    """The people in the order in which who they are follows; fewer than all if the puzzle leaves some open.

    A statement ties its speaker to the people it is about: once all but one of those are known, so is the last.
    """
    tied = [{p, q} if relation in "+-" else {p} ^ {q} ^ {r} for p, (q, relation, r) in said.items()]
    known = list[str]()
    while len(known) < len(said):
        follows = [unknown for people in tied if len(unknown := people - set(known)) == 1]
        if not follows:
            break
        known += follows[0]
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
