"""The child process of `MediaReader`: requests on stdin, clips on stdout. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from av.error import FFmpegError

from data_modules.media.decode import ClipRequest, Several, decode_clips
from data_modules.media.messages import MessageError, read_message, write_message
from lumos_pl.errors import DataError, causes


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
        for message, frames in _answers(waiting.get(), memory_limit_bytes):
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


def _answers(request: dict[str, Any], memory_limit_bytes: int) -> Iterator[tuple[dict[str, Any], memoryview | bytes]]:
    """A message for each clip; then, without a clip, what was left out, or the error."""
    path, sizes = Path(request.pop("path")), tuple((width, height) for width, height in request.pop("sizes"))
    several = request.pop("several")
    several["starts"] = tuple(several["starts"])
    clips = decode_clips(path, ClipRequest(sizes=sizes, **request), Several(**several))
    try:
        while True:
            clip = next(clips)
            n, height, width, _ = clip.frames.shape
            about = {"frames": n, "height": height, "width": width, "is_image": clip.is_image, "start": clip.start}
            about["facts"] = None if clip.facts is None else asdict(clip.facts)
            yield about, clip.frames.data.cast("B")
            del clip  # the next one takes its place in memory
    except StopIteration as end:
        yield {"rests": end.value}, b""
    except DataError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "got", "expected", "fix")}
        told = {name: None if value is None else str(value) for name, value in fields.items()}
        yield {"error": {**told, "errno": _errno(error)}}, b""
    except MemoryError:
        what, expected = "decoding needs too much memory", f"at most {memory_limit_bytes >> 20} MiB"
        yield {"error": {"what": what, "where": None, "got": None, "expected": expected, "fix": None}}, b""


def _errno(error: DataError) -> int | None:
    """What the system said where it could not read; FFmpeg's own numbers tell of the file, not of the storage."""
    said = (one for one in causes(error) if isinstance(one, OSError) and not isinstance(one, FFmpegError))
    return next((one.errno for one in said if one.errno), None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
