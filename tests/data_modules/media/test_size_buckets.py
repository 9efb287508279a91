"""Aspect buckets against a search by brute force, and the nearest of them."""

from __future__ import annotations

import pytest

from data_modules.media.size_buckets import aspect_buckets, nearest_size, parse_sizes
from lumos_pl.errors import ConfigError
from tests.refusals import refused


@pytest.mark.parametrize(("target", "release_size"), [(352, (448, 256)), (528, (672, 384))])
def test_buckets_are_the_largest_crops_of_their_width(target: int, release_size: tuple[int, int]) -> None:
    area = (target // 32) ** 2
    fitting = [(w, h) for w in range(1, area + 1) for h in range(1, area + 1) if w * h <= area]
    tallest: dict[int, int] = {}
    for w, h in fitting:
        tallest[w] = max(h, tallest.get(w, 0))
    expected = [(32 * w, 32 * h) for w, h in sorted(tallest.items()) if w <= 4 * h and h <= 4 * w]
    assert list(aspect_buckets(target)) == expected
    assert release_size in expected


def test_sizes_on_the_command_line() -> None:
    assert parse_sizes("256p", multiple=32) == aspect_buckets(352)
    assert parse_sizes("384p", multiple=8) == aspect_buckets(528)
    assert parse_sizes("64x48", multiple=8) == ((64, 48),)


@pytest.mark.parametrize(
    "text", ["", "512p", "64", "64x", "0x64", "064x64", "-64x64", "64x64x3", "64X64", "64x60", "６４x64"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with refused(ConfigError, where="--size"):
        parse_sizes(text, multiple=8)


def test_nearest_size_loses_least_of_the_source() -> None:
    sizes = aspect_buckets(352)
    assert nearest_size((1920, 1080), sizes) == (448, 256)
    assert nearest_size((1080, 1920), sizes) == (256, 480)
    assert nearest_size((10_000, 10), sizes) == (640, 192)
    assert nearest_size((77, 77), sizes) == (352, 352)
    assert nearest_size((100, 100), [(64, 32), (32, 64)]) == (64, 32)  # of equals, the first
