"""Writing so that a kill at any moment leaves the old or the new, never half."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from harness.errors import BakeoffError


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` by that content in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with temporary.open("wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Values and tables of them as TOML; what is None is left out."""
    text = "".join(f"{_key(k)} = {_inline(v)}\n" for k, v in table.items() if v is not None and not isinstance(v, Mapping))
    for k, inner in table.items():
        if isinstance(inner, Mapping):
            text += f"\n[{'.'.join((*path, _key(k)))}]\n" + toml(cast(Mapping[str, Any], inner), (*path, _key(k)))
    return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = cast(Mapping[str, Any], value)
        return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in inner.items() if v is not None) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, cast(list[Any], value)))}]"
    return json.dumps(value, ensure_ascii=False)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file; a torn last line is not one. Raises BakeoffError for any other that is no record."""
    if not path.exists():
        return []
    return [_record(line, path) for line in path.read_bytes().split(b"\n")[:-1]]


def _record(line: bytes, path: Path) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        raise BakeoffError(f"{path}: {line[:40]!r} is not a record; the file is damaged") from None


def tail_jsonl(path: Path) -> dict[str, Any] | None:
    """The last whole record of a file that may be growing; None if there is none yet."""
    if not path.exists():
        return None
    size = path.stat().st_size
    reach = 1 << 16
    with path.open("rb") as f:
        while True:
            f.seek(max(0, size - reach))
            lines = f.read(size).split(b"\n")[:-1]
            if len(lines) > 1 or reach >= size:
                return _record(lines[-1], path) if lines else None
            reach *= 4


class Journal:
    """A file of JSON lines that grows, one write a record. A torn tail from a kill is cut off on opening."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as f:
            f.seek(0)
            content = f.read()
            f.truncate(content.rfind(b"\n") + 1)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, *rows: dict[str, Any]) -> None:
        os.write(self._fd, jsonl(rows).encode())

    def cut(self, n: int) -> None:
        """Keep the first n records."""
        kept = self.path.read_bytes().split(b"\n")[:-1][:n]
        os.truncate(self.path, sum(len(line) + 1 for line in kept))

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def folder(final: Path) -> Generator[Path]:
    """A temporary folder that becomes `final`, whole, when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as f:
                    os.fsync(f.fileno())
        if not final.exists():
            temporary.replace(final)
        elif not exchange(temporary, final):
            shutil.rmtree(final)
            temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one move, where the system can (Linux); False where it cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(a), here, os.fsencode(b), swap) == 0


def owner(path: Path) -> str:
    """The process that holds a lock, or held it last."""
    return path.read_text().strip()


@contextmanager
def lock(path: Path, doing: str, patience: float = 0.0) -> Generator[None]:
    """Hold `path` alone. A dead owner's lock is free; a living one's is waited for `patience` seconds, then refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open("a+") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BakeoffError(
                        f"{path.parent}: process {owner(path)} is already {doing} here; wait for it or stop it"
                    ) from None
                time.sleep(0.2)
        f.seek(0)
        f.truncate()
        f.write(str(os.getpid()))
        f.flush()
        yield
