"""The base once more, with other random numbers in decoding: the noise floor of every difference to the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods._untrained import Untrained

if TYPE_CHECKING:
    from harness.run import Run


@dataclass(kw_only=True)
class Again(Untrained):
    def setup(self, run: Run) -> None:
        run.decoding = "again"


METHOD = Again
