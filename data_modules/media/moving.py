"""Whether a picture that moves has all its frames, by its own account: decoders stop at damage in silence."""

from __future__ import annotations

from typing import IO

from lumos_pl.errors import DataError

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


def count_frames(file: IO[bytes], kind: str) -> int:
    """The frames that a `GIF` or `WEBP` holds from end to end.

    Raises:
        DataError: its blocks do not follow each other up to the end.
    """
    file.seek(0)
    data = file.read()
    try:
        return _of_gif(data) if kind == "GIF" else _of_webp(data)
    except IndexError:
        raise DataError("the picture is cut off") from None


def _of_gif(data: bytes) -> int:
    frames, place = 0, 13 + _colors(data[10])
    while (block := data[place]) != _GIF_END:
        if block == _GIF_IMAGE:
            frames += 1
            place += 10 + _colors(data[place + 9]) + 1
        elif block == _GIF_EXTENSION:
            place += 2
        else:
            raise DataError("damaged picture", got=f"no block of a GIF at byte {place}")
        while length := data[place]:  # sub-blocks, up to an empty one
            place += length + 1
        place += 1
    return frames


def _colors(flags: int) -> int:
    """Bytes of the table of colours that flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _of_webp(data: bytes) -> int:
    frames, place, unknown = 0, 12, 0
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise DataError("the picture is cut off", got=f"{len(data)} bytes", expected=f"{end} bytes")
    while place < end:
        kind = data[place : place + 4]
        if kind == b"ANMF":
            frames += 1
            if unknown:
                raise DataError("damaged picture", got=f"no frame at byte {unknown}, between two frames")
        elif frames:  # others may follow all of them
            unknown = place
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    if place != end:
        raise DataError("damaged picture", got=f"a part that ends at byte {place}", expected=f"the end at byte {end}")
    return frames
