"""Pictures that an AVI repeats at its end: each is an empty chunk, for which FFmpeg gives no packet."""

from __future__ import annotations

import os
from typing import IO

import numpy as np

_ENTRY = np.dtype([("stream", "S2"), ("kind", "S2"), ("flags", "<u4"), ("place", "<u4"), ("length", "<u4")])


def repeats_at_end(file: IO[bytes], stream: int) -> int:
    """How many of a stream's last chunks are empty by the index `idx1`; none where there is no such index.

    Of a file of more than a gigabyte, whose index does not reach to its end, none are told. The file's position stays.
    """
    position = file.tell()
    n_bytes, place, lengths = file.seek(0, os.SEEK_END), 0, np.empty(0, np.uint32)
    while place + 12 <= n_bytes:
        file.seek(place)
        head = file.read(12)
        kind, length = head[:4], int.from_bytes(head[4:8], "little")
        if not kind.replace(b" ", b"").isalnum():  # no chunk: what fills up a file, perhaps gigabytes of it
            break
        if kind == b"RIFF":
            if place:  # the next gigabyte
                lengths = lengths[:0]
                break
            place += 12
            continue
        if kind == b"idx1":
            file.seek(place + 8)
            content = file.read(length - length % _ENTRY.itemsize)
            entries = np.frombuffer(content[: len(content) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
            lengths = entries["length"][entries["stream"] == b"%02d" % stream]
        place += 8 + length + length % 2
    file.seek(position)
    return int(np.argmax(np.append(lengths[::-1], 1) > 0))
