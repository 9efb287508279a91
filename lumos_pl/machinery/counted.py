"""How many of something, in words."""

from __future__ import annotations


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number and its noun: "1 clip", "2,500 clips"; `many` where an s is not enough."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
