"""Multi-digit addition, subtraction and multiplication, worked out column by column.

prompt      47+25=
solution    <7+5=12,4+2+1=7>72
bands       digits of the longer operand, 2 (two in three) or 3;  out of distribution: 4 or 5
chance      0.01: a number of the right length, drawn evenly
"""

from __future__ import annotations

from random import Random

from harness.task import Problem, Task, Verdict, generated, problem
from tasks._completion import exact, thinking


def draw(rng: Random, ood: bool) -> Problem:
    operator = rng.choice("++--*")
    digits = rng.choice((4, 4, 5) if ood else (2, 2, 3))
    a = number(rng, digits)
    match operator:
        case "+":
            a, b = shuffled(rng, a, number(rng, rng.randint(max(2, digits - 1), digits)))
            answer, thought = a + b, add(a, b)
        case "-":
            b = number(rng, rng.randint(max(2, digits - 1), digits))
            a, b = max(a, b), min(a, b)
            answer, thought = a - b, subtract(a, b)
        case _:
            b = rng.randint(2, 9)
            answer, thought = a * b, multiply(a, b)
    return problem("arithmetic", f"{a}{operator}{b}=", str(answer), thinking(thought, str(answer)), band=f"{operator}{digits}")


def number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def shuffled(rng: Random, a: int, b: int) -> tuple[int, int]:
    return (a, b) if rng.random() < 0.5 else (b, a)


def columns(a: int, b: int) -> list[tuple[int, int | None]]:
    """Digits of a and b from the right; None where b has no more."""
    top, bottom = str(max(a, b))[::-1], str(min(a, b))[::-1]
    return [(int(d), int(bottom[i]) if i < len(bottom) else None) for i, d in enumerate(top)]


def add(a: int, b: int) -> str:
    steps, carry = list[str](), 0
    for x, y in columns(a, b):
        terms = [x] if y is None else [x, y]
        total = sum(terms) + carry
        steps.append("+".join(map(str, terms + [1] * carry)) + f"={total}")
        carry = total // 10
    return ",".join(steps)


def subtract(a: int, b: int) -> str:
    steps, borrow = list[str](), 0
    for x, y in columns(a, b):
        take = (y or 0) + borrow
        lent = 10 if x < take else 0
        steps.append(f"{x + lent}" + (f"-{y}" if y is not None else "") + "-1" * borrow + f"={x + lent - take}")
        borrow = lent // 10
    return ",".join(steps)


def multiply(a: int, b: int) -> str:
    steps, carry = list[str](), 0
    for digit in map(int, str(a)[::-1]):
        total = digit * b + carry
        steps.append(f"{digit}*{b}" + (f"+{carry}" if carry else "") + f"={total}")
        carry = total // 10
    return ",".join(steps)


def verify(problem: Problem, completion: str) -> Verdict:
    return exact(completion, problem.answer)


TASK = Task(
    name="arithmetic",
    summary="add, subtract and multiply numbers of two and three digits",
    problems=generated("arithmetic", draw),
    verify=verify,
    chance=0.01,
    max_new_tokens=64,
)
