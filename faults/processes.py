"""Processes of a campaign: forked, so that none imports torch anew, waited for within limits, and found."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lumos_pl.errors import LumosError

LEAVING_S = 5.0  # of what a process started, after its end


def forked(work: Callable[[], object], said: Path) -> int:
    """Do it in a process group of its own, whose output goes to a file; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        lead_output_to(said)
        returned = work()
        status = returned if isinstance(returned, int) else 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except LumosError as error:
        print(f"lumos: {error}", file=sys.stderr)
        status = error.exit_status
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def lead_output_to(said: Path) -> None:
    """Have all that this process prints, and what it starts, go to a file."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def ended(pid: int, at_most: float, *, term_after: float | None = None) -> int | None:
    """The exit status of what was forked, negative where a signal ended it.

    Args:
        at_most: seconds, after which it is killed; then None.
        term_after: seconds, after which it is sent a SIGTERM.
    """
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < at_most:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if term_after is not None and passed > term_after:
            os.kill(pid, signal.SIGTERM)
            term_after = None
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def children_of(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            state, _, _, of, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(of) == session and state != "Z":
                found.append(int(entry.name))
    return found


def orphans_of(session: int) -> list[int]:
    """Processes of a session that is over, once they have had their time; they are ended then."""
    deadline = time.monotonic() + LEAVING_S
    while (left := of_session(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
