"""Where an option of a method may lie, for a search. Declared beside its default, which it leaves as it is:

    lr: Annotated[Positive, LogUniform(1e-6, 1e-2)] = 1e-6

In a search file the same is a table of one key: `search.lr = { log_uniform = [1e-5, 1e-3] }`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import Field

from harness.errors import BakeoffError
from harness.parse import validated

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Value = float | int | str | bool
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]


class Range(ABC):
    """A set of values to draw from. Raises BakeoffError where there are fewer than two."""

    def drawn_as(self, name: str) -> str:
        """What Optuna calls the option."""
        return name

    @abstractmethod
    def suggest(self, trial: BaseTrial, name: str) -> Value:
        """The value of this option in a trial; drawn the first time, the same one ever after."""

    @abstractmethod
    def grid(self, n: int) -> list[Value]:
        """At most n values, evenly over the range, as Optuna knows them; all of them where there are no more."""

    @abstractmethod
    def ends(self) -> tuple[Value, ...]:
        """Least and greatest, or all of them."""

    def probes(self) -> tuple[Value, ...]:
        """Values that an option must allow to allow them all."""
        return self.ends()


@dataclass(frozen=True)
class Continuous(Range):
    """Any number between two."""

    low: Finite
    high: Finite

    def __post_init__(self) -> None:
        ordered(self.low, self.high)

    def ends(self) -> tuple[float, ...]:
        return self.low, self.high

    def probes(self) -> tuple[float, ...]:
        return self.low, self.low + (self.high - self.low) / 2.7182818, self.high


@dataclass(frozen=True)
class Uniform(Continuous):
    def suggest(self, trial: BaseTrial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high)

    def grid(self, n: int) -> list[Value]:
        inside = [self.low + (self.high - self.low) * i / (n - 1) for i in range(1, n - 1)]
        return [self.low, *inside, self.high]


@dataclass(frozen=True)
class LogUniform(Continuous):
    """Uniform in the logarithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise BakeoffError(
                f"a logarithmic range starts above 0, not at {self.low:g}; take a uniform one or raise its lower end"
            )

    def suggest(self, trial: BaseTrial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=True)

    def grid(self, n: int) -> list[Value]:
        inside = [self.low * (self.high / self.low) ** (i / (n - 1)) for i in range(1, n - 1)]
        return [self.low, *inside, self.high]


@dataclass(frozen=True)
class Integer(Range):
    """Whole numbers, both ends included."""

    low: Whole
    high: Whole

    def __post_init__(self) -> None:
        ordered(self.low, self.high)

    def suggest(self, trial: BaseTrial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high)

    def grid(self, n: int) -> list[Value]:
        return whole(self.low, self.high, n)

    def ends(self) -> tuple[int, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class PowersOfTwo(Range):
    """Whole powers of two, both ends included; Optuna sees the exponent."""

    low: Whole
    high: Whole

    def __post_init__(self) -> None:
        ordered(self.low, self.high)
        for end in (self.low, self.high):
            if end < 1 or end & (end - 1):
                raise BakeoffError(f"{end} is no power of two")

    def drawn_as(self, name: str) -> str:
        return f"log2 {name}"

    def suggest(self, trial: BaseTrial, name: str) -> int:
        return 2 ** trial.suggest_int(self.drawn_as(name), *self._exponents())

    def grid(self, n: int) -> list[Value]:
        return whole(*self._exponents(), n)

    def ends(self) -> tuple[int, ...]:
        return self.low, self.high

    def _exponents(self) -> tuple[int, int]:
        return self.low.bit_length() - 1, self.high.bit_length() - 1


@dataclass(frozen=True)
class Choice(Range):
    """Values without an order."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if len(set(self.values)) < 2:
            raise BakeoffError("an empty range: needs two values or more to choose from")

    def suggest(self, trial: BaseTrial, name: str) -> Value:
        chosen = trial.suggest_categorical(name, self.values)
        assert chosen is not None
        return chosen

    def grid(self, n: int) -> list[Value]:  # noqa: ARG002
        return list(self.values)

    def ends(self) -> tuple[Value, ...]:
        return self.values


KINDS: dict[str, type[Range]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "integer": Integer,
    "powers_of_two": PowersOfTwo,
    "choice": Choice,
}


def ordered(low: float, high: float) -> None:
    if low > high:
        raise BakeoffError(f"the minimum {low:g} is above the maximum {high:g}")
    if not low < high:
        raise BakeoffError(f"an empty range: from {low:g} to {high:g} there is nothing to search; set the option instead")


def whole(low: int, high: int, n: int) -> list[Value]:
    """At most n whole numbers from low to high, evenly."""
    n = min(n, high - low + 1)
    return [low + math.floor((high - low) * i / (n - 1) + 0.5) for i in range(n)]


def declared(method: type[Any]) -> dict[str, Range]:
    """The ranges that stand beside a method's defaults, by option."""
    hints = get_type_hints(method, include_extras=True)
    found = {f.name: [m for m in getattr(hints[f.name], "__metadata__", ()) if isinstance(m, Range)] for f in fields(method)}
    return {name: ranges[-1] for name, ranges in found.items() if ranges}


def read(table: Any) -> Range:
    """A range as a search file has it: `{ log_uniform = [1e-5, 1e-3] }`, `{ choice = ["sum", "mean"] }`."""
    if not isinstance(table, Mapping) or len(table) != 1 or next(iter(table)) not in KINDS:
        raise BakeoffError(f"must be a table of one key, of {', '.join(KINDS)}, not {table!r}")
    kind, values = next(iter(table.items()))
    if not isinstance(values, list):
        raise BakeoffError(f"{kind} must be a list, not {values!r}")
    if kind == "choice":
        return validated(Choice, {"values": values}, kind)
    if len(values) != 2:
        raise BakeoffError(f"{kind} must be [minimum, maximum], not {values!r}")
    return validated(KINDS[kind], {"low": values[0], "high": values[1]}, kind)


def written(range_: Range) -> dict[str, list[Value]]:
    """The table that `read` makes this range of."""
    kind = next(kind for kind, cls in KINDS.items() if type(range_) is cls)
    return {kind: list(range_.ends())}
