"""A slice of the run matrix, for machines that share nothing but a folder: Slurm arrays, Kubernetes indexed jobs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.comparison import RunConfig
from harness.errors import BakeoffError


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `of` slices, counted from 0; by default the whole."""

    index: int = 0
    of: int = 1

    @staticmethod
    def read(text: str) -> Shard:
        """Of "0/4". Raises BakeoffError for what is no slice."""
        if not re.fullmatch(r"[0-9]+/[0-9]+", text):
            raise BakeoffError(f"--shard {text}: write it as i/n, for example 0/4 for the first of four slices")
        index, of = map(int, text.split("/"))
        if index >= of:
            raise BakeoffError(
                f"--shard {text}: " + (f"{of} slices are 0/{of} to {of - 1}/{of}" if of else "there must be a slice at least")
            )
        return Shard(index, of)

    @property
    def lock(self) -> str:
        """The name of the file that a process at this slice holds."""
        return "lock" if self.of == 1 else f"lock-{self.index}-of-{self.of}"

    def of_runs(self, runs: Sequence[RunConfig]) -> list[RunConfig]:
        """Every n-th run that starts from a base, and all that start from those, in their order."""
        first = dict[str, str]()  # by run, where its line of starts begins
        for run in runs:
            first[run.id] = first.get(run.start, run.id)
        lines = {begin: number for number, begin in enumerate(dict.fromkeys(first.values()))}
        return [run for run in runs if lines[first[run.id]] % self.of == self.index]
