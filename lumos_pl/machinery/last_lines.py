"""The lines of a file that grows, read from its end in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lumos_pl.machinery.regular_file import open_regular, size_of

BLOCK_BYTES = 1 << 20
MOST_BYTES = 64 << 20  # that are looked through


def last_lines(file: Path, *, at_most: int = MOST_BYTES) -> Iterator[bytes]:
    """The whole lines of a file, the last one first, without their ends; one that is still being written is left out.

    Args:
        at_most: bytes that are read.
    Raises:
        DataError: it is no regular file, or cannot be opened.
    """
    with open_regular(file, at_most=None) as stream:
        place = size_of(stream)
        least, rest, is_last = max(0, place - at_most), b"", True
        while place > least:
            begin = max(least, place - BLOCK_BYTES)
            stream.seek(begin)
            first, *lines = (stream.read(place - begin) + rest).split(b"\n")
            if is_last and lines:  # what follows the last end of a line
                lines.pop()
                is_last = False
            yield from reversed(lines)
            place, rest = begin, first
        if place == 0 and not is_last:
            yield rest


def count_lines(file: Path) -> int:
    """How many whole lines a file has."""
    with open_regular(file, at_most=None) as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(BLOCK_BYTES), b""))
