"""Numbers of a configuration, and where they may lie."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from numbers import Real

from lumos_pl.errors import ConfigError
from lumos_pl.settings.plain import check_types, read_value


@dataclass(frozen=True, kw_only=True)
class Range:
    """The finite numbers from `low` to `high`; `at_least`, `above` and `between` make the usual ones.

    Args:
        words: what a message says is expected.
        without: the ends that do not belong to it.
        optional: whether None is in it, too.
    """

    low: float
    high: float
    words: str
    without: tuple[float, ...] = ()
    optional: bool = False

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number: float = value  # type: ignore[assignment]  # which any real number can be compared as
        return -math.inf < number < math.inf and self.low <= number <= self.high and number not in self.without

    @property
    def usual_words(self) -> str:
        """`words` without an upper end that only a slip of the finger reaches."""
        return self.words.removesuffix(f", up to {LARGEST_COUNT}").removesuffix(f", up to {LARGEST_FLOAT}")

    def check(self, where: str, value: object) -> None:
        """Raise ConfigError, with the field's name, unless the value is in the range."""
        if value not in self:
            got = "null" if value is None else reprlib.repr(value)
            raise ConfigError("out of range", where=where, got=got, expected=self.words)


LARGEST_COUNT = 10**9  # more of anything is a slip of the finger
LARGEST_FLOAT = 3e38  # which fp32 has


def at_least(low: float, words: str | None = None) -> Range:
    """Up to `LARGEST_COUNT`."""
    return Range(low=low, high=LARGEST_COUNT, words=words or f"{low} or more, up to {LARGEST_COUNT}")


def above(low: float, *, up_to: float = LARGEST_FLOAT, below: float = math.inf, words: str | None = None) -> Range:
    """Without `low` itself, and without `below`."""
    end = f" and below {below}" if below < math.inf else f", up to {up_to}"
    return Range(low=low, high=min(up_to, below), without=(low, below), words=words or f"above {low}{end}")


def between(low: float, high: float) -> Range:
    """Both ends are in it."""
    return Range(low=low, high=high, words=f"{low} to {high}")


def optional(within: Range) -> Range:
    """The same, or None: a value left to its default."""
    return replace(within, optional=True)


def whole_number(value: int, where: str, *, low: int = 1) -> int:
    """A count that an argument gives, of whatever library, as Python's own.

    Raises:
        ConfigError: it is no whole number, or lower than `low`: it would fail when it is first counted with.
    """
    read: int = read_value(value, int, where)
    at_least(low).check(where, read)
    return read


def check_ranges(where: str, settings: object, **ranges: Range) -> None:
    """Raise ConfigError at the first field of `settings`, a dataclass, that is not of its type, or not in its range.

    Args:
        where: what the fields belong to, as the messages call it: `trainer` for `trainer.max_steps`; empty for nothing.
        ranges: by the name of the field.
    """
    if (noted := _noted.get()) is not None:
        noted.update({(id(settings), name): within for name, within in ranges.items()})
    check_types(where, settings)  # first: a text or a truth value is not out of range, it is no number
    for name, within in ranges.items():
        within.check(f"{where}.{name}" if where else name, getattr(settings, name))


Noted = dict[tuple[int, str], Range]
_noted: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """The ranges that `check_ranges` is asked for meanwhile, by the `id` of the settings and the field's name."""
    noted: Noted = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)
