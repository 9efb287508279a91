"""Sizes and times as people read them."""

from __future__ import annotations

from itertools import pairwise

DAY = 86_400


def size(n_bytes: int) -> str:
    """Bytes in the unit that makes them easy to read."""
    for unit, power in ("GiB", 30), ("MiB", 20), ("KiB", 10):
        if n_bytes >= 1 << power:
            return f"{n_bytes / (1 << power):.3g} {unit}" if n_bytes < 1000 << power else f"{n_bytes >> power:,} {unit}"
    return f"{n_bytes} B"


def span(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = round(seconds)
    units = (DAY, "d"), (3600, "h"), (60, "min"), (1, "s")
    for (large, name), (small, other) in pairwise(units):
        if whole >= large:
            return f"{whole // large} {name}" + (f" {rest} {other}" if (rest := whole % large // small) else "")
    return f"{whole} s"
