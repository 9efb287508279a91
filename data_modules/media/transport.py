"""MPEG-TS by its own account: packets from end to end, each with a counter that tells whether one before it is lost.

FFmpeg passes over what is no packet, in silence, and a gap in the times may be a picture that stayed for longer.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from numpy.typing import NDArray

from lumos_pl.errors import DataError

SYNC_BYTE = b"G"
_NULL_PACKETS = 0x1FFF  # which fill up, and are not counted
_AT_ONCE = 4096


def check_packets(file: IO[bytes]) -> None:
    """Raise DataError unless the file is packets from end to end and none is missing; the file's position stays."""
    position = file.tell()
    try:
        file.seek(0)
        length, first = (188, 0) if file.read(1) == SYNC_BYTE else (192, 4)  # those of cameras begin with a time
        file.seek(0)
        number, counters = 0, dict[int, int]()
        while block := file.read(length * _AT_ONCE):
            marks = block[first::length]
            if len(block) % length or marks.strip(SYNC_BYTE):
                good = len(marks) - len(marks.lstrip(SYNC_BYTE))
                raise DataError("damaged container", got=f"something else than packet {number + good}")
            _check_counters(np.frombuffer(block, np.uint8).reshape(-1, length)[:, first:], counters, number)
            number += len(marks)
    finally:
        file.seek(position)


def _check_counters(packets: NDArray[np.uint8], counters: dict[int, int], number: int) -> None:
    """Raise DataError where a stream's packets do not go on by one.

    Args:
        packets: one a row.
        counters: each stream's last, which go on with these.
        number: of the first packet, for the message.
    """
    header = packets[:, :6].astype(np.int64)
    streams = (header[:, 1] & 0x1F) << 8 | header[:, 2]
    has_field, has_payload = (header[:, 3] & 0x20) > 0, (header[:, 3] & 0x10) > 0
    begins_anew = has_field & (header[:, 4] > 0) & ((header[:, 5] & 0x80) > 0)  # it says so
    for stream in np.unique(streams):
        if stream == _NULL_PACKETS:
            continue
        places = np.flatnonzero((streams == stream) & has_payload)
        if not len(places):
            continue
        found = header[places, 3] & 0xF
        steps = np.diff(found, prepend=counters.get(int(stream), int(found[0]) - 1)) % 16
        lost = np.flatnonzero((steps > 1) & ~begins_anew[places])  # 0: the same packet once more
        if len(lost):
            raise DataError("packets are missing", where=f"packet {number + int(places[lost[0]])}")
        counters[int(stream)] = int(found[-1])
