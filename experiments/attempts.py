"""Every attempt at a run is written down, however it ends: see `lumos_pl.machinery.attempts`.

An attempt without an end was killed, or its machine was.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.failures import as_failure
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.attempts import Attempt
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.own_files import append, ever_written, keep_aside, note
from lumos_pl.machinery.regular_file import read_regular


class AttemptWriter:
    """One attempt, on the rank that writes of it.

    Args:
        file: the run's attempts.jsonl.
        step: asked for the steps that are done.
    """

    def __init__(self, file: Path, step: Callable[[], int]) -> None:
        self._file, self._step = file, step
        self._begun_at: int | None = None

    def begin(self, ranks: int, step: int) -> None:
        """Add its first line; what lies there and is no account of ours is kept aside."""
        content = b""
        if os.path.lexists(self._file):
            content = self._own_lines()
        began = Attempt(
            event="start",
            time=round(time.time(), 3),
            step=step,
            ranks=ranks,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        write_atomically(self._file, content + _line(began))
        self._begun_at = step

    def end(self, status: int, line: str) -> None:
        """Add its last line, once; none if it has not begun, or if the line cannot be written: what ended it counts."""
        begun_at, self._begun_at = self._begun_at, None
        if begun_at is not None:
            step = max(begun_at, self._step())
            ended = Attempt(event="end", time=round(time.time(), 3), step=step, status=status, line=line)
            with suppress(OSError):
                append(self._file, _line(ended))

    def _own_lines(self) -> bytes:
        """What earlier attempts wrote, without what a kill has torn."""
        if ever_written(self._file) and self._file.is_file() and not self._file.is_symlink():
            content = read_regular(self._file, follow=False)
            *lines, torn = content.split(b"\n")
            if all(map(_event, lines)):
                note(self._file, hashlib.sha256(content).hexdigest())  # it is ours as it is
                return content.removesuffix(torn)
        keep_aside(self._file)
        return b""


@contextmanager
def attempt(file: Path, *, step: Callable[[], int]) -> Iterator[AttemptWriter]:
    """An attempt whose end is written down, whatever ends it, if it has begun."""
    one = AttemptWriter(file, step)
    try:
        yield one
    except BaseException as error:
        one.end(*_said_of(error))
        raise
    one.end(0, "")


def _said_of(error: BaseException) -> tuple[int, str]:
    """The exit status and the line of what ends a command."""
    match error:
        case SystemExit():
            return (error.code if isinstance(error.code, int) else 1), ""
        case Exception():
            failure = as_failure(error)
            return failure.exit_status, str(failure)
    return 130, ""  # Ctrl-C before there was anything to save


def _event(line: bytes) -> Attempt | None:
    with suppress(DataError):
        return parse_json(line, Attempt)
    return None


def _line(event: Attempt) -> bytes:
    return json.dumps(event).encode() + b"\n"
