"""The one shape of a completion in the generated tasks: think first, then answer, or answer at once.

<7+8=15,4+5+1=10>105        a thought between angle brackets, then the answer and nothing else
105                         the answer alone
"""

from __future__ import annotations

from harness.task import Problem, Verdict


def thinking(thought: str, answer: str) -> str:
    return f"<{thought}>{answer}"


def extract(completion: str) -> str | None:
    """What stands after the thought; None if the thought never ends."""
    if not completion.startswith("<"):
        return completion
    _, closed, answer = completion.partition(">")
    return answer if closed else None


def exact(problem: Problem, completion: str) -> Verdict:
    """Right if the answer is the problem's to the letter: a hedge, junk after it or a second answer is wrong."""
    answer = extract(completion)
    if answer is None:
        return Verdict(0.0, None, "the thought never ends")
    if answer == problem.answer:
        return Verdict(1.0, answer, "correct")
    return Verdict(0.0, answer, f"expected {problem.answer}" if answer else "no answer")
