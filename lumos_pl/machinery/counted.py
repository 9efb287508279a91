"""How many of something, in words."""

from __future__ import annotations


def counted(n: int, what: str) -> str:
    """A number and its noun, which takes an s unless it is one: "1 clip", "2,500 clips"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
