from __future__ import annotations

from lumos_pl.errors import ConfigError


def test_a_message_is_one_line() -> None:
    assert str(ConfigError("a\nb", got="c\n d")) == "a b | got c d"
