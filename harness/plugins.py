"""Find a method or a task by name: a file in methods/ or tasks/, an installed entry point, or `package.module:Name`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from harness.errors import BakeoffError, meant

Kind = Literal["methods", "tasks"]
EXPORT = {"methods": "METHOD", "tasks": "TASK"}


@lru_cache
def installed(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"bakeoff.{kind}")}


def names(kind: Kind) -> list[str]:
    package = importlib.import_module(kind)
    ours = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return sorted({*ours, *installed(kind)})


def check(kind: Kind, name: str) -> None:
    """Refuse an unknown name without importing what it names."""
    if ":" not in name and name not in names(kind):
        raise BakeoffError(f"no {kind[:-1]} named {name!r}{meant(name, names(kind))}")


def find(kind: Kind, name: str) -> Any:
    """The Method class or the Task of this name."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise BakeoffError(f"no {kind[:-1]} at {name!r}: {error}") from error
    if entry := installed(kind).get(name):
        return entry.load()
    check(kind, name)
    return getattr(importlib.import_module(f"{kind}.{name}"), EXPORT[kind])
