"""Every attempt at a run, however it ended: attempts.jsonl in the run's folder.

{"event": "start", "time": 1764300000.1, "step": 0, "ranks": 4, "host": "node-7", "pid": 311}
{"event": "end", "time": 1764300600.7, "step": 180, "status": 75, "line": "rank 2 ended | ..."}

An attempt without an end was killed, or its machine was. Seconds are of the Unix clock.
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
from typing import Any, Literal

from typing_extensions import TypedDict

from experiments.failures import as_failure
from lumos_pl.errors import DataError, LumosError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import Count, Number, parse_json
from lumos_pl.machinery.own_files import append, ever_written, keep_aside, note
from lumos_pl.machinery.regular_file import read_regular


class Began(TypedDict):
    """An attempt found the step from which it goes on."""

    event: Literal["start"]
    time: Number
    step: Count
    ranks: Count
    host: str
    pid: Count


class Ended(TypedDict):
    """It ended, with this exit status and line, "" if there was nothing to tell."""

    event: Literal["end"]
    time: Number
    step: Count
    status: int
    line: str


Event = Began | Ended


def read_attempts(file: Path) -> list[Event]:
    """The events in their order; none: there is no such file. A line that a kill has torn is passed over."""
    if not file.is_file():
        return []
    return [event for line in read_regular(file).splitlines() if (event := _event(line)) is not None]


class Attempt:
    """One attempt, on the rank that writes of it.

    Args:
        file: the run's attempts.jsonl.
        step: asked for the steps that are done.
    """

    def __init__(self, file: Path, step: Callable[[], int]) -> None:
        self._file, self._step = file, step
        self._has_begun = False

    def begin(self, ranks: int, step: int) -> None:
        """Add its first line; what lies there and is no account of ours is kept aside."""
        content = b""
        if os.path.lexists(self._file):
            content = self._own_lines()
        began = Began(
            event="start",
            time=round(time.time(), 3),
            step=step,
            ranks=ranks,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        write_atomically(self._file, content + _line(began))
        self._has_begun = True

    def end(self, status: int, line: str) -> None:
        if self._has_begun:
            self._has_begun = False
            ended = Ended(event="end", time=round(time.time(), 3), step=self._step(), status=status, line=line)
            with naming(self._file):
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
def attempt(file: Path, *, step: Callable[[], int]) -> Iterator[Attempt]:
    """An attempt whose end is written down, whatever ends it, if it has begun."""
    one = Attempt(file, step)
    try:
        yield one
    except BaseException as error:
        with suppress(LumosError):  # a full disk: what ended the run is what there is to say
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


def _event(line: bytes) -> Event | None:
    with suppress(DataError):
        event: Event = parse_json(line, Event)  # type: ignore[arg-type]
        return event
    return None


def _line(event: Event) -> bytes:
    content: dict[str, Any] = dict(event)
    return json.dumps(content).encode() + b"\n"
