"""Being asked to stop by a signal, which is noted until the work can leave in good order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1 is how SLURM warns before a job's time is up


class StoppedBySignal(SystemExit):
    """The run saved and left because it was told to; its code is the shell's: 128 + signal."""


class StopRequest:
    """Notes SIGNALS while a run lasts: a context manager around all of it.

    Until `defer` is called there is nothing to save, and a signal leaves at once with
    `StoppedBySignal`. From then on the first signal is noted for `Checkpointing`, which calls `at_once`
    when all is saved. Further signals change nothing, to the end of the process. A terminal that goes away, which
    tells of it by SIGHUP, ends nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = False
        self._hang_up: Callable[[int, FrameType | None], Any] | int | None = None
        self._replaced: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._replaced[number] = signal.signal(number, self._note)
        self._hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def defer(self) -> None:
        """Let `Checkpointing` decide when to leave; takes the signals back from Lightning's own handler."""
        self._deferred = True
        for number in self._replaced:
            signal.signal(number, self._note)

    def at_once(self) -> None:
        """Have a signal leave at once again, also one that is noted already."""
        self._deferred = False
        if self.number is not None:
            raise StoppedBySignal(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        repeated = self.number is not None
        self.number = self.number or number
        if not self._deferred and not repeated:
            raise StoppedBySignal(128 + number)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGHUP, self._hang_up)
        for number, handler in self._replaced.items():
            signal.signal(number, handler if self.number is None else signal.SIG_IGN)
