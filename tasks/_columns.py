"""Calculations worked out column by column, from the right. For arithmetic, dialect and sums."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Calculation:
    prompt: str  # 47+25=
    answer: str  # 72
    columns: list[str]  # 7+5=12, 4+2+1=7
    band: str  # +2: the operator, and the digits of the longer operand


def calculation(rng: Random, ood: bool) -> Calculation:
    """An addition, subtraction or multiplication of two or three digits."""
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
    return Calculation(f"{a}{operator}{b}=", str(answer), thought, f"{operator}{digits}")


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


def steps(thought: str) -> list[str]:
    """Its columns, terms and factors in one order: what is added or multiplied may stand in any."""

    def ordered(text: str, operator: str) -> str:
        first, *rest = text.split(operator)
        return operator.join([first, *sorted(rest)] if operator == "-" else sorted([first, *rest]))

    def column(text: str) -> str:
        left, equals, right = text.partition("=")
        terms = "+".join(sorted(ordered(term, "*") for term in left.split("+")))
        return (ordered(terms, "-") if "-" in left else terms) + equals + right

    return [column(text) for text in thought.split(",")]
