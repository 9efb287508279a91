"""The ranges of configured numbers: what is in them, and what a message says of what is not."""

from __future__ import annotations

import math
from dataclasses import make_dataclass

import numpy as np
import pytest

from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import Range, above, at_least, between, check_ranges, optional


@pytest.mark.parametrize(
    ("within", "inside", "outside"),
    [
        (at_least(1), [1, 1.0, 10**9, np.int64(3), np.float32(2.5)], [0, 0.999, -1, 10**11, 10**400]),
        (above(0), [5e-324, 1, 1e38], [0, 0.0, -1, 1e39]),
        (above(0, up_to=1), [0.5, 1], [0, 1.001]),
        (above(0, below=1), [0.5], [0, 1]),
        (between(0, 1), [0, 0.5, 1], [-0.001, 1.001]),
        (optional(at_least(1)), [None, 1], [0]),
    ],
    ids=lambda value: value.words if isinstance(value, Range) else "",
)
def test_a_range_has_the_numbers_that_its_words_say(within: Range, inside: list[object], outside: list[object]) -> None:
    for value in inside:
        within.check("here", value)
    for value in outside:
        with pytest.raises(ConfigError) as caught:
            within.check("here", value)
        assert (caught.value.where, caught.value.expected) == ("here", within.words)
        assert len(str(caught.value.got)) < 60


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", True, [1], 1j], ids=repr)
@pytest.mark.parametrize("within", [at_least(-1), above(-1), between(-1, 2)], ids=lambda within: within.words)
def test_what_is_no_finite_number_is_in_no_range(within: Range, value: object) -> None:
    with pytest.raises(ConfigError):
        within.check("here", value)


def test_the_first_wrong_field_is_named() -> None:
    settings = make_dataclass("Three", [("a", int), ("b", int), ("c", int)])(a=1, b=0, c=-1)
    for where, named in ("part", "part.b"), ("", "b"):
        with pytest.raises(ConfigError) as caught:
            check_ranges(where, settings, a=at_least(1), b=at_least(1), c=at_least(0))
        assert caught.value.where == named
    check_ranges("part", settings, a=between(1, 1), b=at_least(0))
