"""Errors that are the user's to mend: one line that says what, where and how, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

USAGE, RUNS_FAILED, MISSING, GATE_FAILED, INTERRUPTED = 2, 3, 4, 5, 130
BUSY = 75  # of a worker alone: another process has its run


class BakeoffError(Exception):
    """Shown as one line on stderr, without a traceback."""

    def __init__(self, message: str, code: int = USAGE):
        super().__init__(message)
        self.code = code


class TrustError(BakeoffError):
    """A check that every number rests on does not hold: the run stops as FAILED."""

    def __init__(self, message: str):
        super().__init__(message, RUNS_FAILED)


def meant(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'grpo'?)" or the list of what there is."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (there is: {', '.join(known)})" if known else ""
