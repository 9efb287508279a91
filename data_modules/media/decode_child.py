"""The child process of `MediaReader`: requests on stdin, clips on stdout. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from data_modules.media.decode import ClipRequest, decode_media
from data_modules.media.messages import MessageError, read_message, write_message
from lumos_pl.errors import DataError


def main(memory_limit_bytes: int) -> None:
    """Answer requests, one at a time, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:  # whatever a library prints must not mix with the answers
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    _limit_memory(memory_limit_bytes)
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    write_message(answers, {})  # ready
    while True:
        message, frames = _answer(waiting.get(), memory_limit_bytes)
        write_message(answers, message, frames)


def _listen(requests: IO[bytes], waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Pass requests on, and end the process with its parent, even in the middle of a file."""
    with contextlib.suppress(MessageError):
        while True:
            waiting.put(read_message(requests))
    os._exit(0)


def _limit_memory(limit_bytes: int) -> None:
    with contextlib.suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any], memory_limit_bytes: int) -> tuple[dict[str, Any], memoryview | bytes]:
    path, sizes = Path(request.pop("path")), tuple((width, height) for width, height in request.pop("sizes"))
    try:
        clip = decode_media(path, ClipRequest(sizes=sizes, **request))
    except DataError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "got", "expected", "fix")}
        return {"error": {name: None if value is None else str(value) for name, value in fields.items()}}, b""
    except MemoryError:
        what, expected = "decoding needs too much memory", f"at most {memory_limit_bytes >> 20} MiB"
        return {"error": {"what": what, "where": None, "got": None, "expected": expected, "fix": None}}, b""
    n, height, width, _ = clip.frames.shape
    return {"frames": n, "height": height, "width": width, "is_image": clip.is_image}, clip.frames.data.cast("B")


if __name__ == "__main__":
    main(int(sys.argv[1]))
