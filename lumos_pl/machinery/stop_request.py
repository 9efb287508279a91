"""Being asked to stop by a signal, which is noted until the work can leave in good order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Literal

# SLURM warns by SIGUSR1 before a job's time is up, LSF by SIGUSR2, and Grid Engine by either, or by SIGXCPU.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

Breaks = Literal["never", "late", "now"]
"""When a noted signal breaks off what is done: not at all, in the second half of the grace, or at once."""


class StoppedBySignal(SystemExit):
    """The run saved and left because it was told to; its code is the shell's: 128 + signal."""

    is_told = False  # what was kept, and what goes on: then nobody says it again


class BrokenOff(StoppedBySignal):
    """What is done can be done again, and the run is to stop: the last step that is over has yet to be saved."""


class StopRequest:
    """Notes SIGNALS while a run lasts: a context manager around all of it.

    Until `defer` is called there is nothing to save, and a signal leaves at once with
    `StoppedBySignal`. From then on the first signal is noted for `Checkpointing`, which calls `at_once`
    when all is saved. Further signals change nothing, to the end of the process. A terminal that goes away, which
    tells of it by SIGHUP, ends nothing.

    What can be done again says so by `breakable`, or `breaks`: a noted signal raises `BrokenOff` in there.

    Attributes:
        current: of this process, whose signals there are.
        grace_s: seconds from a SIGTERM to the SIGKILL that follows it; None: not known.
        number: the signal that was noted.
    """

    current: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self.grace_s: float | None = None
        self.number: int | None = None
        self._noted_at = 0.0
        self._deferred = False
        self._breaks: Breaks = "never"
        self._hang_up: Callable[[int, FrameType | None], Any] | int | None = None
        self._replaced: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._around: StopRequest | None = None
        self._reminder: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        self._around, StopRequest.current = StopRequest.current, self
        for number in SIGNALS:
            self._replaced[number] = signal.signal(number, self._note)
        self._hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    @property
    def left_s(self) -> float | None:
        """Seconds that are left of the grace; None: nobody counts them."""
        if self.number != signal.SIGTERM or self.grace_s is None:
            return None
        return self._noted_at + self.grace_s - time.monotonic()

    @property
    def is_late(self) -> bool:
        """Whether the first half of the grace is over: then nothing is waited for that is not to be saved."""
        left = self.left_s
        return left is not None and self.grace_s is not None and left <= self.grace_s / 2

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

    def breaks(self, when: Breaks) -> None:
        """From now on, a signal breaks off what is done, also one that is noted already; see `Breaks`."""
        self._breaks = when
        self._break_off_if_due()

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """What is done inside is broken off at once by a noted signal."""
        before = self._breaks
        try:
            self.breaks("now")
            yield
        finally:
            self._breaks = before

    def _break_off_if_due(self) -> None:
        if self.number is None or not self._deferred:
            return
        if self._breaks == "now" or (self._breaks == "late" and self.is_late):
            self._breaks = "never"
            raise BrokenOff(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._noted_at = number, time.monotonic()
            if not self._deferred:
                raise StoppedBySignal(128 + number)
            if (left := self.left_s) is not None:
                self._remind(number, left / 2)
        self._break_off_if_due()

    def _remind(self, number: int, seconds: float) -> None:
        """Have the main thread hear the signal once more, wherever it waits then."""
        main = threading.main_thread().ident
        assert main is not None
        self._reminder = threading.Timer(seconds, lambda: signal.pthread_kill(main, number))
        self._reminder.daemon = True
        self._reminder.start()

    def __exit__(self, *_: object) -> None:
        if self._reminder is not None:
            self._reminder.cancel()
        StopRequest.current = self._around
        signal.signal(signal.SIGHUP, self._hang_up)
        for number, handler in self._replaced.items():
            signal.signal(number, handler if self.number is None else signal.SIG_IGN)


def breaks(when: Breaks) -> None:
    """As `StopRequest.breaks`, if a run defers signals."""
    if StopRequest.current is not None:
        StopRequest.current.breaks(when)


@contextmanager
def breakable() -> Iterator[None]:
    """Around what a process does alone and can do again: a signal breaks it off by `BrokenOff`, if a run defers them.

    Nothing in there may wait for another process that does not stop too, or leave something half done.
    """
    stop = StopRequest.current
    if stop is None:
        yield
        return
    with stop.breakable():
        yield
