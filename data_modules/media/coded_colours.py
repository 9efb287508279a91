"""What an AVIF or HEIC picture says of its colours without a profile: the code points of ITU-T H.273."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

_MOST_BYTES = 4 << 20  # of the boxes before the pictures


class Coded(NamedTuple):
    """Numbers of primaries and of a transfer function."""

    primaries: int
    transfer: int


def coded_colours(file: IO[bytes]) -> Coded | None:
    """Those of the picture that is shown; None: it does not say. The file stays where it is."""
    position = file.tell()
    file.seek(0)
    data = file.read(_MOST_BYTES)
    file.seek(position)
    try:
        return _of_shown(data)
    except LookupError:
        return None


def _of_shown(data: bytes) -> Coded:
    meta = dict(_boxes(dict(_boxes(data))[b"meta"][4:]))
    iprp = dict(_boxes(meta[b"iprp"]))
    wide = 4 if meta[b"pitm"][0] else 2
    properties = list(_boxes(iprp[b"ipco"]))
    for number in _properties_of(int.from_bytes(meta[b"pitm"][4 : 4 + wide]), iprp[b"ipma"]):
        kind, content = properties[number - 1]
        if kind == b"colr" and content[:4] == b"nclx":
            return Coded(int.from_bytes(content[4:6]), int.from_bytes(content[6:8]))
    raise LookupError


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each."""
    place = 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        if length < 8:
            return
        yield data[place + 4 : place + 8], data[place + 8 : place + length]
        place += length


def _properties_of(item: int, table: bytes) -> Iterator[int]:
    """From a table of the properties of all items."""
    id_bytes, number_bytes = (4 if table[0] else 2), (2 if table[3] & 1 else 1)
    place = 8
    for _ in range(int.from_bytes(table[4:8])):
        found = int.from_bytes(table[place : place + id_bytes])
        n, place = table[place + id_bytes], place + id_bytes + 1
        for _ in range(n):
            if found == item:
                yield int.from_bytes(table[place : place + number_bytes]) & ((1 << 8 * number_bytes - 1) - 1)
            place += number_bytes
