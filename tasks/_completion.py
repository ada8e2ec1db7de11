"""The one shape of a completion in the generated tasks: think first, then answer, or answer at once.

<7+8=15,4+5+1=10>105        a thought between angle brackets, then the answer and nothing else
105                         the answer alone

A thought holds if its steps are those of the worked solution, in its order. Saying one twice does not spoil it: it is counted as
a re-check. Digits may be written as letters, a for 0 to j for 9; who uses both in one thought mixes languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from harness.task import Problem, Verdict, Verifier

LETTERS = str.maketrans("0123456789", "abcdefghij")
DIGITS = str.maketrans("abcdefghij", "0123456789")

Steps = Callable[[str], list[str]]  # of a thought, each in one way of writing it


def thinking(thought: str, answer: str) -> str:
    return f"<{thought}>{answer}"


def extract(completion: str) -> str | None:
    """What stands after the thought; None if the thought never ends."""
    if not completion.startswith("<"):
        return completion
    _, closed, answer = completion.partition(">")
    return answer if closed else None


def reasoned(verify: Verifier, steps: Steps) -> Verifier:
    """The same verifier, which judges the thought too, by that of the worked solution or `meta["thought"]`."""

    def judge(problem: Problem, completion: str) -> Verdict:
        verdict, thought = verify(problem, completion), thought_of(completion)
        known = problem.meta.get("thought", thought_of(problem.solution))
        if thought is None or known is None:
            return verdict
        holds, again = followed(steps(thought.translate(DIGITS)), steps(known))
        mixed = bool(re.search(r"[0-9]", thought) and re.search(r"[a-j]", thought))
        return replace(verdict, formed=bool(thought and verdict.answer), trace=holds, rechecks=again, mixed=mixed)

    return judge


def followed(taken: list[str], known: list[str]) -> tuple[bool, int]:
    """Whether the steps taken are the known ones in their order, and how many of them only repeat an earlier one."""
    holds, at, again = True, 0, 0
    for i, step in enumerate(taken):
        if at < len(known) and step == known[at]:
            at += 1
        elif step in taken[:i]:
            again += 1
        else:
            holds = False
    return holds and at == len(known), again


def thought_of(completion: str) -> str | None:
    """What stands between the brackets; None if nothing is thought, or the thought never ends."""
    thought, closed, _ = completion.removeprefix("<").partition(">")
    return thought if completion.startswith("<") and closed else None


def exact(problem: Problem, completion: str) -> Verdict:
    """Right if the answer is the problem's to the letter: a hedge, junk after it or a second answer is wrong."""
    answer = extract(completion)
    if answer is None:
        return Verdict(0.0, None, "the thought never ends")
    if answer == problem.answer:
        return Verdict(1.0, answer, "correct")
    return Verdict(0.0, answer, f"expected {problem.answer}" if answer else "no answer")
