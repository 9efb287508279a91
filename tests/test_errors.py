from __future__ import annotations

from lumos_pl.errors import ConfigError, causes


def test_a_message_is_one_line() -> None:
    assert str(ConfigError("a\nb", got="c\n d")) == "a b | got c d"


def test_causes_that_lead_back_into_themselves_have_an_end() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    assert list(causes(first)) == [first, second]
