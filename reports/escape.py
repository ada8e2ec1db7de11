"""Model text is hostile: what it shows is what it holds, and none of it acts."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
THOUGHT = re.compile(r"\s*(?:<think>.*?(?:</think>|\Z)|<[^>]*(?:>|\Z))", re.DOTALL)
LONGEST = 1500
LAYOUT = str.maketrans("", "", "\n\t")


@dataclass(frozen=True)
class Piece:
    """A stretch of a completion: thought, plain text, or the code of a character that would not be seen."""

    kind: Literal["thought", "text", "code"]
    text: str


def _hidden(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in INVISIBLE


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def plain(text: str) -> str:
    """One string in which control, bidi and other unseen characters stand as codes."""
    if text.translate(LAYOUT).isprintable():
        return text
    return "".join(f"⟨{_code(c)}⟩" if _hidden(c) else c for c in text)


def finalize(value: Any) -> Any:
    """What Jinja writes for a value: markup of our own as it is, any other text made visible (then escaped)."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def pieces(completion: str) -> list[Piece]:
    """A completion in pieces, the thought at its start (`<…>` or `<think>…</think>`) apart; cut when very long."""
    text, rest = completion[:LONGEST], len(completion) - LONGEST
    match = THOUGHT.match(text)
    border = match.end() if match else 0
    found = [*_split(text[:border], "thought"), *_split(text[border:], "text")]
    if rest > 0:
        found.append(Piece("code", f"… {rest:,} more characters"))
    return found


def _split(text: str, kind: Literal["thought", "text"]) -> list[Piece]:
    found: list[Piece] = []
    seen = ""
    for character in text:
        if not _hidden(character):
            seen += character
            continue
        if seen:
            found.append(Piece(kind, seen))
        found.append(Piece("code", _code(character)))
        seen = ""
    return [*found, Piece(kind, seen)] if seen else found
