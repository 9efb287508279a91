"""Messages between a reader and its child: a length, JSON, and the raw bytes that the JSON announces."""

from __future__ import annotations

import json
from typing import IO, Any, Never

_MAX_JSON_BYTES = 1 << 20


class MessageError(Exception):
    """The other side is gone, or says what it must not."""


def write_message(file: IO[bytes], message: dict[str, Any], data: memoryview | bytes = b"") -> None:
    text = json.dumps(message).encode()
    file.write(len(text).to_bytes(4, "big") + text)
    file.write(data)
    file.flush()


def read_message(file: IO[bytes]) -> dict[str, Any]:
    """The next message without its data.

    Raises:
        MessageError: the end of the file, or no JSON object.
    """
    size = int.from_bytes(_read(file, 4), "big")
    if size > _MAX_JSON_BYTES:
        raise MessageError(f"a message of {size} bytes")
    try:
        message = json.loads(_read(file, size), parse_constant=_no_constant)  # paths may hold what is not UTF-8
    except (ValueError, RecursionError) as error:
        raise MessageError("a message that is no JSON") from error
    if not isinstance(message, dict):
        raise MessageError("a message that is no object")
    return message


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def read_data(file: IO[bytes], into: memoryview) -> None:
    """Fill `into`, a memoryview of bytes."""
    done = 0
    while done < len(into):
        if not (n := file.readinto(into[done:])):  # type: ignore[attr-defined]
            raise MessageError("the end of the pipe")
        done += n


def _read(file: IO[bytes], size: int) -> bytes:
    data = bytearray(size)
    read_data(file, memoryview(data))
    return bytes(data)
