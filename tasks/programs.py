"""Find the program behind five examples; what is written is executed on inputs that the prompt does not show.

    prompt      0:5 1:8 2:11 4:17 8:29?    x:f(x) at 0, 1, 2 and two more
    solution    <3,3;3>3*x+5               two differences, the number that gives the program away, the program
    bands       linear, modulo, square, floor, half as often absolute;  out of distribution: a constant term
            further from 0 than in any other split (which modulo does not have)
    chance      0.0005: the program of another problem

The answer is an expression of x or a Python program that defines f. The sandbox returns what it computes; whether that is
right is decided here, on the five examples and on `HELD_OUT`. In about one problem of 400 a second program of the family fits the
examples and not the held-out inputs: no method can know which was meant.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from random import Random

from harness import sandbox
from harness.task import Problem, Task, Verdict, generated, problem
from tasks._completion import extract, reasoned, thinking

FORMS = (*("linear", "modulo", "square", "floor") * 2, "absolute")
HELD_OUT = (-7, -2, 6, 9, 13, 20, 31)
LONGEST = 2_000  # characters of program text that are worth compiling


def draw(rng: Random, ood: bool) -> Problem:
    inputs = (0, 1, 2, rng.randint(3, 7), rng.randint(8, 9))  # far apart: nearly always one function of the family fits
    form = rng.choice([form for form in FORMS if not ood or form != "modulo"])
    program, hint = drawn(rng, form, rng.choice((rng.randint(-20, -10), rng.randint(31, 60))) if ood else rng.randint(-9, 30))
    outputs = [evaluate(program, x) for x in inputs]
    shown = ",".join(str(b - a) for a, b in pairwise(outputs[:3]))
    prompt = " ".join(f"{x}:{y}" for x, y in zip(inputs, outputs, strict=True)) + "?"
    solution = thinking(f"{shown};{hint}", program)
    return problem("programs", prompt, program, solution, band=form, inputs=inputs)


def drawn(rng: Random, form: str, b: int) -> tuple[str, str]:
    """A program of this form with the constant b, and the number that gives it away."""
    a = rng.randint(2, 9)
    match form:
        case "linear":
            a *= rng.choice((-1, 1))
            return f"{a}*x{b:+d}", f"{a}"
        case "modulo":
            m = rng.randint(a + 1, 2 * a)  # wraps by x = 2
            return f"({a}*x+{rng.randrange(m)})%{m}", f"{m}"
        case "square":
            a *= rng.choice((-1, 1))
            return f"x*x{a:+d}*x{b:+d}", f"{a}"
        case "absolute":
            turn = rng.randint(1, 6)
            return f"{a}*abs(x-{turn}){b:+d}", f"{turn}"
        case _:
            every = rng.randint(2, 3)
            return f"x//{every}*{a}{b:+d}", f"{every}"


def evaluate(program: str, x: int) -> int:
    """A program of ours, at x."""
    return eval(program, {"x": x, "abs": abs})


def verify(problem: Problem, completion: str) -> Verdict:
    answer = extract(completion)
    if not answer:
        return Verdict(0.0, answer, "no answer" if answer == "" else "the thought never ends")
    if len(answer) > LONGEST:
        return Verdict(0.0, answer[:80], f"longer than {LONGEST} characters")
    inputs = (*problem.meta["inputs"], *HELD_OUT)
    outcome = execute(answer, inputs)
    if outcome.kind != "ok":
        return Verdict(0.0, answer, f"{outcome.kind.replace('_', ' ')}: {outcome.detail}".removesuffix(": "))
    for x, got in zip(inputs, outcome.values, strict=True):
        expected = evaluate(problem.answer, x)
        if type(got) is not int or got != expected:
            return Verdict(0.0, answer, f"f({x}) is {expected}, not {str(got)[:40]}")
    return Verdict(1.0, answer, "correct")


@lru_cache(maxsize=1 << 16)
def execute(program: str, inputs: tuple[int, ...]) -> sandbox.Outcome:
    """What the program returns; the same program on the same inputs is executed once."""
    return sandbox.call(program, [(x,) for x in inputs])


TASK = Task(
    name="programs",
    summary="find the program behind five examples; it is executed on held-out inputs",
    problems=generated("programs", draw),
    verify=reasoned(verify, lambda thought: thought.split(";")),
    chance=0.0005,
    max_new_tokens=64,
    waits=True,
)
