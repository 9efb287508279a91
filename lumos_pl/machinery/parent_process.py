"""Processes that do not outlive the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

LAUNCHER = "LUMOS_LAUNCHER"  # in the environment of a rank: the process that started it
STOPPED, GONE = "stopped", "ended"  # what `state_of` says
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process once `parent`, which started it, has ended; where it is Linux.

    Also where this process is stopped, or hangs: nobody could ask it to end then.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def wake_with_parent_end() -> None:
    """Have this process not be killed when its parent has ended, but wake up, should it be stopped, to tell it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def launcher() -> int | None:
    """The rank that started this one as a rank; None: something else did."""
    parent = os.getppid()
    return parent if os.environ.get(LAUNCHER) == str(parent) else None


def state_of(pid: int) -> str:
    """What a process is at, in words, as far as the system tells."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "running" if sys.platform != "linux" else GONE
    words = {"T": STOPPED, "t": STOPPED, "D": "waiting for a disk", "Z": GONE, "X": GONE}
    return words.get(letter, "running")


def renew(event: Event) -> None:
    """Make an event as new, once the processes that shared it have ended.

    Whoever looks at an event holds its lock for a moment. A process that ends just then takes the lock along, and
    whoever sets the event next would wait for ever.
    """
    Event.__init__(event, ctx=get_context())


def end_of(code: int) -> str:
    """How a process ended, by its exit code: the signal, or the status."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # one without a name
        return f"signal {-code}"
