"""Multi-digit addition, subtraction and multiplication, worked out column by column.

prompt      47+25=
solution    <7+5=12,4+2+1=7>72
bands       digits of the longer operand, 2 (two in three) or 3;  out of distribution: 3 digits with a carry (a loan) out of
            every column but the last, of which there are none in the other splits
chance      0.01: a number of the right length, drawn evenly
"""

from __future__ import annotations

import re
from random import Random

from harness.task import Problem, Task, generated, problem
from tasks._completion import exact, thinking


def draw(rng: Random, ood: bool) -> Problem:
    while True:
        operator, digits = rng.choice("++--*"), 3 if ood else rng.choice((2, 2, 3))
        a = number(rng, digits)
        b = rng.randint(2, 9) if operator == "*" else number(rng, rng.randint(max(2, digits - 1), digits))
        match operator:
            case "+":
                a, b = shuffled(rng, a, b)
                answer, thought = a + b, add(a, b)
            case "-":
                a, b = max(a, b), min(a, b)
                answer, thought = a - b, subtract(a, b)
            case _:
                answer, thought = a * b, multiply(a, b)
        if ood == (digits == 3 and all(carries(column) for column in thought[:-1])):
            break
    solution = thinking(",".join(thought), str(answer))
    return problem("arithmetic", f"{a}{operator}{b}=", str(answer), solution, band=f"{operator}{digits}")


def carries(column: str) -> bool:
    """Whether a column's sum has two digits, or the digit that is subtracted from was lent ten."""
    return re.search(r"\d\d", column) is not None


def number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def shuffled(rng: Random, a: int, b: int) -> tuple[int, int]:
    return (a, b) if rng.random() < 0.5 else (b, a)


def columns(a: int, b: int) -> list[tuple[int, int | None]]:
    """Digits of a and b from the right; None where b has no more."""
    top, bottom = str(max(a, b))[::-1], str(min(a, b))[::-1]
    return [(int(d), int(bottom[i]) if i < len(bottom) else None) for i, d in enumerate(top)]


def add(a: int, b: int) -> list[str]:
    steps, carry = list[str](), 0
    for x, y in columns(a, b):
        terms = [x] if y is None else [x, y]
        total = sum(terms) + carry
        steps.append("+".join(map(str, terms + [1] * carry)) + f"={total}")
        carry = total // 10
    return steps


def subtract(a: int, b: int) -> list[str]:
    steps, borrow = list[str](), 0
    for x, y in columns(a, b):
        take = (y or 0) + borrow
        lent = 10 if x < take else 0
        steps.append(f"{x + lent}" + (f"-{y}" if y is not None else "") + "-1" * borrow + f"={x + lent - take}")
        borrow = lent // 10
    return steps


def multiply(a: int, b: int) -> list[str]:
    steps, carry = list[str](), 0
    for digit in map(int, str(a)[::-1]):
        total = digit * b + carry
        steps.append(f"{digit}*{b}" + (f"+{carry}" if carry else "") + f"={total}")
        carry = total // 10
    return steps


TASK = Task(
    name="arithmetic",
    summary="add, subtract and multiply numbers of two and three digits",
    problems=generated("arithmetic", draw),
    verify=exact,
    chance=0.01,
    max_new_tokens=64,
)
