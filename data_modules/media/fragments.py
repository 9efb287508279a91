"""Whether an MP4 of fragments goes on to its end: its header has no length, and FFmpeg stops at damage in silence."""

from __future__ import annotations

import os
from typing import IO

from lumos_pl.errors import DataError

_HEAD = 8  # bytes of a box: its length, and its kind


def check_fragments(file: IO[bytes], *, some: bool) -> None:
    """See that boxes follow each other from end to end, where any of them is a fragment.

    Args:
        some: it is known that there are.
    Raises:
        DataError: something else stands where a box should, or the last one is not whole.
    """
    position = file.tell()
    n_bytes, place, kinds = file.seek(0, os.SEEK_END), 0, set[bytes]()
    got: str | None = None
    while place < n_bytes and got is None:
        file.seek(place)
        head = file.read(2 * _HEAD)
        length, kind = int.from_bytes(head[:4], "big"), head[4:_HEAD]
        if length == 1:
            length = int.from_bytes(head[_HEAD:], "big")
        elif length == 0 and kind == b"mdat":  # it takes all that is left
            length = n_bytes - place
        if length < _HEAD or not kind.replace(b" ", b"").isalnum():
            got = f"no box at byte {place}"
        elif place + length > n_bytes:
            got = f"a box of {length} bytes at byte {place}"
        kinds.add(kind)
        place += length
    file.seek(position)
    if got is not None and (some or b"moof" in kinds):
        raise DataError("the video is cut off, or damaged", got=got, expected=f"boxes up to byte {n_bytes}")
