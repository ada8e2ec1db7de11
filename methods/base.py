"""No training at all: the start itself, evaluated like every other arm."""

from __future__ import annotations

from dataclasses import dataclass

from methods._untrained import Untrained


@dataclass(kw_only=True)
class Base(Untrained): ...


METHOD = Base
