"""Find the program behind five examples; what is written is executed on inputs that the prompt does not show.

    prompt      1:5 2:8 3:11 4:14 5:17?           x:f(x), five inputs in a row
    solution    <3,3,3,3;0:2>3*x+2                 differences (for squares, second differences too), f at a telling point
    bands       linear, modulo, square, absolute, floor;  out of distribution: the same forms with larger numbers
    chance      0.002: the program of another problem that begins at the same input

The answer is an expression of x or a Python program that defines f. The sandbox returns what it computes; whether that is
right is decided here, on the five examples and on `HELD_OUT`.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from harness import sandbox
from harness.task import Problem, Task, Verdict, generated, problem
from tasks._completion import extract, thinking

HELD_OUT = (-7, -2, 6, 9, 13, 20, 31)
LONGEST = 2_000  # characters of program text that are worth compiling


def draw(rng: Random, ood: bool) -> Problem:
    start = rng.randint(0, 5)
    inputs = range(start, start + 5)
    form = rng.choice(("linear", "linear", "modulo", "square", "absolute", "floor"))
    while True:
        program, hint = drawn(rng, form, start, 2 if ood else 1)
        outputs = [eval(program, {"x": x, "abs": abs}) for x in inputs]
        first = differences(outputs)
        if form != "modulo" or min(first) < 0:  # a remainder that never wraps is a line
            break
    shown = ",".join(map(str, first))
    if form == "square":
        shown += ";" + ",".join(map(str, differences(first)))
    prompt = " ".join(f"{x}:{y}" for x, y in zip(inputs, outputs, strict=True)) + "?"
    solution = thinking(f"{shown};{hint}", program)
    return problem("programs", prompt, program, solution, band=form, inputs=tuple(inputs))


def drawn(rng: Random, form: str, start: int, scale: int) -> tuple[str, str]:
    """A program of this form, and the number that the differences leave to be worked out."""
    a, b = rng.randint(2, 9) + 8 * (scale - 1), rng.randint(-30, 30) * scale
    match form:
        case "linear":
            a *= rng.choice((-1, 1))
            return f"{a}*x{b:+d}", f"0:{b}"
        case "modulo":
            m = rng.randint(a + 2, 3 * a + 1)
            b = rng.randrange(m)
            return f"({a}*x+{b})%{m}", f"{m}"
        case "square":
            a *= rng.choice((-1, 1))
            return f"x*x{a:+d}*x{b:+d}", f"0:{b}"
        case "absolute":
            turn = start + rng.randint(1, 3)
            return f"{a}*abs(x-{turn}){b:+d}", f"{turn}:{b}"
        case _:
            return f"x//{rng.randint(2, 3)}*{a}{b:+d}", f"0:{b}"


def differences(xs: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(xs)]


def verify(problem: Problem, completion: str) -> Verdict:
    answer = extract(completion)
    if not answer:
        return Verdict(0.0, answer, "no answer" if answer == "" else "the thought never ends")
    if len(answer) > LONGEST:
        return Verdict(0.0, answer[:80], f"longer than {LONGEST} characters")
    inputs = (*problem.meta["inputs"], *HELD_OUT)
    outcome = sandbox.call(answer, [(x,) for x in inputs])
    if outcome.kind != "ok":
        return Verdict(0.0, answer, f"{outcome.kind.replace('_', ' ')}: {outcome.detail}".removesuffix(": "))
    for x, got, expected in zip(inputs, outcome.values, expected_outputs(problem), strict=True):
        if type(got) is not int or got != expected:
            return Verdict(0.0, answer, f"f({x}) is {expected}, not {str(got)[:40]}")
    return Verdict(1.0, answer, "correct")


def expected_outputs(problem: Problem) -> list[int]:
    gold = compile(problem.answer, "gold", "eval")
    return [eval(gold, {"x": x, "abs": abs}) for x in (*problem.meta["inputs"], *HELD_OUT)]


TASK = Task(
    name="programs",
    summary="find the program behind five examples; it is executed on held-out inputs",
    problems=generated("programs", draw),
    verify=verify,
    chance=0.002,
    max_new_tokens=64,
)
