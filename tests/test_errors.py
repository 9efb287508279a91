from __future__ import annotations

import errno

import pytest

from lumos_pl.errors import ConfigError, NumericError, causes
from lumos_pl.machinery.retrying import passes


def test_a_message_is_one_line() -> None:
    assert str(ConfigError("a\nb", got="c\n d")) == "a b | got c d"


@pytest.mark.timeout(20)
def test_the_causes_of_an_error_end_where_it_was_raised_from_itself() -> None:
    error = NumericError("loss is not finite")
    with pytest.raises(NumericError):
        raise error from error  # as whoever looks for another's failure first, and finds none
    assert list(causes(error)) == [error]
    assert not passes(error)


def test_the_causes_of_an_error_end_in_a_circle() -> None:
    stale, line = OSError(errno.ESTALE, "stale"), ConfigError("a line")
    stale.__cause__, line.__cause__ = line, stale
    assert list(causes(line)) == [line, stale]
    assert passes(line)
