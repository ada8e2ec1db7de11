"""From tables, as TOML has them, to dataclasses, with one clear line for what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from harness.errors import BakeoffError, meant

T = TypeVar("T")


def validated(cls: type[T], value: Mapping[str, Any], where: str) -> T:
    """The dataclass with these fields; BakeoffError names the first field that is wrong, and the nearest right one."""
    try:
        return TypeAdapter(cls).validate_python(dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        at = f"{where}: {path}" if path else where
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise BakeoffError(f"{at}: unknown key{meant(str(first['loc'][-1]), names(cls, first['loc'][:-1]))}") from None
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        got = "" if first["type"] in ("missing", "missing_argument", "value_error") else f", not {first['input']!r}"
        raise BakeoffError(f"{at}: {message[0].lower()}{message[1:]}{got}") from None


def names(cls: Any, path: Sequence[Any]) -> Iterator[str]:
    """The fields of the dataclass at `path` inside cls: field names, and positions in tuples."""
    at = cls
    for part in path:
        inside = get_type_hints(at).get(str(part)) if is_dataclass(at) else None
        at = get_args(at)[0] if get_origin(at) is tuple else inside
        cls = at if is_dataclass(at) else cls
    return (f.name for f in fields(cls) if f.init)
