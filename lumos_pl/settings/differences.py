"""Where two nested settings differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Difference(NamedTuple):
    """A field, dotted, and its two values; None stands for none."""

    where: str
    made: object
    asked: object


def differences(made: object, asked: object, where: str = "") -> Iterator[Difference]:
    """Every field of nested dicts that is not the same, in the order of what is asked for; lists are compared whole."""
    if isinstance(made, dict) and isinstance(asked, dict):
        for name in {**asked, **made}:
            yield from differences(made.get(name), asked.get(name), f"{where}.{name}" if where else name)
    elif not _are_equal(made, asked):
        yield Difference(where, made, asked)


def _are_equal(made: object, asked: object) -> bool:
    try:
        return bool(made == asked)
    except (RuntimeError, ValueError):  # a tensor of several numbers, where there should be a plain value
        return False
