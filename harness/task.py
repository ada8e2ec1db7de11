"""What is asked, and what is right. Pure Python: importing a task never imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, Literal, overload

Split = Literal["train", "validation", "test", "ood"]


@dataclass(frozen=True)
class Problem:
    """One question with a known answer."""

    id: str  # content hash: the unit of pairing between methods
    prompt: str
    answer: str  # an answer the verifier accepts: the completion of someone who does not think aloud
    solution: str  # a worked solution ending in the answer: what SFT imitates
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])  # `band` (difficulty) and what the verifier needs


@dataclass(frozen=True)
class Verdict:
    """What a verifier decided about one completion, and why."""

    reward: float  # in [0, 1]
    answer: str | None = None  # what was extracted from the completion
    reason: str = ""  # shown next to the completion in the report
    truncated: bool = False  # the completion met the length limit before it ended
    formed: bool = False  # it reasons and then answers, whatever it says
    trace: bool | None = None  # the reasoning holds; None where there is none, or no rule for it
    rechecks: int = 0  # steps of the reasoning that are gone over again
    mixed: bool = False  # the reasoning changes its language on the way

    @property
    def correct(self) -> bool:
        return self.reward == 1.0


Verifier = Callable[[Problem, str], Verdict]


@dataclass(frozen=True)
class Task:
    """Problems and the rule that checks them.

    `verify` judges a completion that ended by itself. It raises when it cannot judge; it never returns 0 for "I failed".
    """

    name: str
    summary: str  # one line: what is asked
    problems: Callable[[Split], Sequence[Problem]]
    verify: Verifier
    chance: float  # pass@1 of someone who knows the format and guesses
    max_new_tokens: int  # long enough for every gold solution, in characters
    waits: bool = False  # `verify` waits for another process: it is asked in a thread of its own, while others are sampled

    def judge(self, problem: Problem, completion: str, truncated: bool) -> Verdict:
        """The verdict on a sampled completion: one that was cut off has no answer."""
        if truncated:
            return Verdict(0.0, None, "truncated", truncated=True)
        return self.verify(problem, completion)


def prompt_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


Draw = Callable[[Random, bool], Problem]  # (generator, out of distribution?) -> a problem


class Generated(Sequence[Problem]):
    """A split of an endless family: problem i depends on (name, split, i) alone, and is made when it is asked for.

    The split a prompt belongs to is decided by the prompt's own hash, so no held-out prompt is trained on, whatever is
    drawn. Test and ood share their part of the hashes: they differ in what is drawn.
    """

    SIZES: Mapping[Split, int] = {"train": 50_000, "validation": 500, "test": 500, "ood": 500}
    SHARES: Mapping[Split, range] = {
        "train": range(80),
        "validation": range(80, 90),
        "test": range(90, 100),
        "ood": range(90, 100),
    }

    def __init__(self, name: str, draw: Draw, split: Split):
        self.name, self.draw = name, draw
        self.split: Split = split
        self._distinct = list(self._unrepeated()) if split != "train" else None

    def _nth(self, i: int) -> Problem:
        rng = Random(f"{self.name}/{self.split}/{i}")
        ood = self.split == "ood"
        while True:
            problem = self.draw(rng, ood)
            if int(prompt_hash(problem.prompt)[:8], 16) % 100 in self.SHARES[self.split]:
                return problem

    def _unrepeated(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for i in range(20 * len(self)):
            problem = self._nth(i)
            if problem.prompt not in seen:
                seen.add(problem.prompt)
                yield problem
            if len(seen) == len(self):
                return
        raise ValueError(f"{self.name}/{self.split}: only {len(seen)} of {len(self)} problems are distinct; widen the draw")

    def __len__(self) -> int:
        return self.SIZES[self.split]

    @overload
    def __getitem__(self, i: int) -> Problem: ...
    @overload
    def __getitem__(self, i: slice) -> list[Problem]: ...
    def __getitem__(self, i: int | slice) -> Problem | list[Problem]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._distinct[i] if self._distinct is not None else self._nth(i % len(self))


def generated(name: str, draw: Draw) -> Callable[[Split], Sequence[Problem]]:
    """The four splits of a family of problems drawn by `draw`."""

    @lru_cache
    def problems(split: Split) -> Sequence[Problem]:
        return Generated(name, draw, split)

    return problems


def problem(task: str, prompt: str, answer: str, solution: str, **meta: Any) -> Problem:
    """A problem whose id is the hash of what is asked."""
    return Problem(f"{task}-{prompt_hash(prompt)[:12]}", prompt, answer, solution, meta)
