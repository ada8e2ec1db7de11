"""Sampled completions with the verifier's verdicts on them, which are asked for while others are still sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from harness import devices
from harness.generate import Heard, Samples, decoded
from harness.task import Problem, Task, Verdict

Result = tuple[str, Verdict] | Exception  # the text of a completion and the verdict on it, or why there is none


def judged(
    task: Task, asked: Sequence[Problem], tokenizer: Any, sample: Callable[[Heard], Samples]
) -> tuple[Samples, list[str], list[Verdict]]:
    """What `sample` gives, the text of each completion, and the verdict on it.

    asked    the problem of each completion
    sample   tells the function that it is given of every completion

    A verifier that waits for another process is asked in a thread of its own, one completion after another as they finish; others
    would only take turns with the sampling. Of several processes, each judges what it hears of, and all have all verdicts.

    Raises, in all processes, what the verifier raises in one of them, once all is sampled; it is not asked again meanwhile.
    """
    failures = list[Exception]()
    results = dict[int, Callable[[], Result]]()

    def judge(i: int, tokens: list[int], ended: bool) -> Result:
        if failures:
            return failures[0]
        try:
            text = decoded(tokenizer, tokens, ended)
            return text, task.judge(asked[i], text, not ended)
        except Exception as error:
            failures.append(error)
            return error

    def here(i: int, tokens: list[int], ended: bool) -> None:
        results[i] = partial(judge, i, tokens, ended)

    def apart(i: int, tokens: list[int], ended: bool) -> None:
        results[i] = thread.submit(judge, i, tokens, ended).result

    thread = ThreadPoolExecutor(1)
    try:
        y = sample(apart if task.waits else here)
        found = devices.joined({i: result() for i, result in results.items()})
    finally:
        thread.shutdown(cancel_futures=True)
    texts, verdicts = list[str](), list[Verdict]()
    for result in found:
        if isinstance(result, Exception):
            raise result
        texts.append(result[0])
        verdicts.append(result[1])
    return y, texts, verdicts
