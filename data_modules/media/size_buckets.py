"""Sizes that pictures are cropped to: aspect buckets of one area, as in the release."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lumos_pl.errors import ConfigError

Size = tuple[int, int]
"""Width and height in px."""

_BUCKET_TARGETS = {"256p": 352, "384p": 528}


def aspect_buckets(target: int, *, patch: int = 32, max_ratio: float = 4.0) -> tuple[Size, ...]:
    """Crops of about `target` x `target` px: per width in patches, the tallest that fits the area.

    A crop of w x h patches has w * h at most floor(target / patch)^2 and is at most `max_ratio`
    times as long as wide, either way round.

    Returns:
        sizes by rising width.
    Source: Lumos-1, arXiv:2507.08801 (target 352 for 256p, 528 for 384p).
    """
    area = (target // patch) ** 2
    crops = ((w, area // w) for w in range(1, area + 1))
    return tuple((w * patch, h * patch) for w, h in crops if max(w, h) <= max_ratio * min(w, h))


def parse_sizes(text: str, *, multiple: int, where: str = "--size") -> tuple[Size, ...]:
    """The sizes that an option or a setting names: "256p" and "384p" are aspect buckets, "64x48" is one size.

    Raises:
        ConfigError: anything else, or a size that is not a multiple of `multiple` px.
    """
    if text in _BUCKET_TARGETS:
        sizes = aspect_buckets(_BUCKET_TARGETS[text])
    elif match := re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text):
        sizes = ((int(match[1]), int(match[2])),)
    else:
        expected = f"{', '.join(_BUCKET_TARGETS)} or WIDTHxHEIGHT such as 64x64"
        raise ConfigError("unknown size", where=where, got=repr(text), expected=expected)
    for width, height in sizes:
        if width % multiple or height % multiple:
            got, expected = f"{width}x{height} px", f"multiples of {multiple} px"
            raise ConfigError("size does not fit the tokenizer", where=where, got=got, expected=expected)
    return sizes


def nearest_size(source: tuple[float, float], sizes: Sequence[Size]) -> Size:
    """The size whose crop loses the least of the source: the nearest aspect; of equals, the first."""
    width, height = source

    def kept(size: Size) -> float:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down)

    return max(sizes, key=kept)
