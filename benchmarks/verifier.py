"""Model-written programs a second that the verifier of the `programs` task executes and judges on one core.

Every program is another one, so that none is answered from memory: right answers, worked solutions, answers to another
problem, definitions of f, and texts that do not compile, in equal parts. Each is executed on the twelve inputs of its
problem in a confined process of its own. The other side starts an interpreter for each program (`python -I -c`), without
any confinement.

ratio             programs a second over 150, the target
ratio_subprocess  programs a second over those of the other side
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from benchmarks import _side_by_side as side
from harness.task import Problem, Verdict

TARGET = 150  # programs a second
ALONE = """
import json, sys
code, inputs = json.loads(sys.stdin.read())
scope = {}
try:
    program = compile(code, "program", "eval")
    f = lambda x: eval(program, {"x": x})
except SyntaxError:
    exec(compile(code, "program", "exec"), scope)
    f = scope["f"]
print(json.dumps([f(x) for x in inputs]))
"""


def completions(first: int, n: int) -> Iterator[tuple[Problem, str]]:
    """What a policy might write for problems `first` to `first + n` of the stream."""
    from tasks.programs import TASK

    problems = TASK.problems("train")[first : first + n + 1]
    for i, (problem, other) in enumerate(pairwise(problems)):
        match i % 5:
            case 0:
                yield problem, problem.answer
            case 1:
                yield problem, problem.solution
            case 2:
                yield problem, other.answer
            case 3:
                yield problem, f"def f(x):\n    y = {problem.answer}\n    return y"
            case _:
                yield problem, f"{problem.answer}+("


def started(program: str, inputs: tuple[int, ...]) -> list[object] | None:
    """What a program returns, run by an interpreter of its own; None where it fails."""
    asked = json.dumps([program, inputs])
    done = subprocess.run([sys.executable, "-I", "-c", ALONE], input=asked, capture_output=True, text=True, timeout=10)
    return None if done.returncode else json.loads(done.stdout)


def subprocess_verdict(problem: Problem, completion: str) -> Verdict:
    """The verdict of the `programs` task, with an interpreter in place of the sandbox."""
    from tasks import programs
    from tasks._completion import extract

    inputs = (*problem.meta["inputs"], *programs.HELD_OUT)
    got = started(extract(completion) or "", inputs)
    return Verdict(float(got == [programs.evaluate(problem.answer, x) for x in inputs]))


def main() -> None:
    parser = side.parser(__doc__)
    parser.add_argument("--programs", type=side.positive, default=500, metavar="N", help="a round (default: %(default)s)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None
    if cores:
        os.sched_setaffinity(0, cores[:1])

    from harness import sandbox
    from tasks import programs

    level = sandbox.level()
    first = 0

    def judged(judge: Callable[[Problem, str], Verdict], n: int) -> side.Figures:
        nonlocal first
        asked = list(completions(first, n))
        first += len(asked)
        programs.execute.cache_clear()
        begun = time.perf_counter()
        right = sum(judge(problem, text).correct for problem, text in asked)
        elapsed = time.perf_counter() - begun
        return {"programs_per_second": len(asked) / elapsed, "right": right / len(asked)}

    sides = {
        "ours": lambda: judged(programs.verify, options.programs),
        "subprocess": lambda: judged(subprocess_verdict, max(1, options.programs // 10)),
    }
    measured = side.measure(sides, options.pairs)
    sandbox.close()
    rates = {name: found["programs_per_second"] for name, found in measured.items()}
    side.report(
        "verifier",
        1,
        ratio=statistics.median(rates["ours"]) / TARGET,
        ratio_subprocess=side.rounded(statistics.median(side.ratios(rates["ours"], rates["subprocess"]))),
        ours=side.spreads(measured["ours"]),
        theirs=side.spreads(measured["subprocess"]),
        target=TARGET,
        sandbox=level,
        cores_used=1 if cores else None,
        programs=options.programs,
        pairs=options.pairs,
    )


if __name__ == "__main__":
    main()
