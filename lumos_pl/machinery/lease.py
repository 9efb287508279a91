"""Leases: which of several processes, on any machines that share a folder, does a piece of work, until it is done.

FOLDER/step-00000100.lease-0   made by the first who took the work, and written anew every few seconds while it lasts
       step-00000100.lease-1   made by the next one: the first was silent for too long, or gave the work back

The highest number counts. A lease is made by O_EXCL and renewed by its maker alone, so nothing here needs locks, clocks
that agree or a rename that replaces nothing, all of which some file systems of networks lack: of two who want the same
number one gets it. Whether a holder is alive is seen by what it writes, not by the time that it writes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from typing_extensions import TypedDict

from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming
from lumos_pl.machinery.json_file import Count, Number, parse_json
from lumos_pl.machinery.regular_file import read_regular

_MOST_BYTES = 1 << 12
_RENEWALS = 4  # in the time after which a silent holder counts as gone
_NUMBER = re.compile(r"\.lease-(0|[1-9][0-9]{0,8})$")


class LeaseRecord(TypedDict):
    """What a lease says: who holds it, and, for people who look, until when (unix seconds) unless it is renewed."""

    host: str
    pid: Count
    renewed: Count
    until: Number
    given_back: bool
    note: str


class LeaseLostError(Exception):
    """Another process has taken the work over: this one was silent for too long."""


class Lease:
    """One that this process holds; `Leases.taken` makes it.

    Args:
        file: which is there, and empty.
        descriptor: to write it.
        note: what whoever takes the work over must know to clean up.
    """

    def __init__(self, file: Path, descriptor: int, lease_s: float, note: str) -> None:
        self.file, self._descriptor, self._lease_s, self.note = file, descriptor, lease_s, note
        self._renewed = 0
        self._is_over = Event()
        self._write()
        self._thread = Thread(target=self._renew, name=f"lease of {file.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError where another has taken the work over, or is done with it."""
        if os.path.lexists(_next(self.file)) or not os.path.lexists(self.file):
            raise LeaseLostError(self.file.name)

    def end(self) -> None:
        """Give the work back: whoever looks next may take it."""
        self._is_over.set()
        self._thread.join(self._lease_s)
        if self._thread.is_alive():  # the storage does not answer: silence says the same
            return
        with suppress(OSError):  # it is gone, and so is the folder, or the storage: silence says the same
            self._write(given_back=True)
        os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._is_over.wait(self._lease_s / _RENEWALS):
            with suppress(OSError):  # a renewal that fails is one that is late
                self._write()

    def _write(self, *, given_back: bool = False) -> None:
        self._renewed += 1
        record = LeaseRecord(
            host=socket.gethostname(),
            pid=os.getpid(),
            renewed=self._renewed,
            until=round(time.time() + self._lease_s, 1),
            given_back=given_back,
            note=self.note,
        )
        data = json.dumps(record).encode() + b"\n"
        os.pwrite(self._descriptor, data.ljust(os.fstat(self._descriptor).st_size), 0)  # never shorter: no half is left
        os.fsync(self._descriptor)


class Leases:
    """The leases of a folder, as one process sees them.

    Args:
        folder: which is there.
        lease_s: how long a holder may be silent, in seconds, before its work is taken over.
        forget: called with the note of a holder whose work is taken over, or over.
    """

    def __init__(self, folder: Path, *, lease_s: float, forget: Callable[[str], None] = lambda note: None) -> None:
        self.folder, self.lease_s, self._forget = folder, lease_s, forget
        self._seen: dict[Path, tuple[bytes, float]] = {}  # what a lease said, and since when it says so

    @contextmanager
    def taken(self, work: str, note: str = "") -> Iterator[Lease | None]:
        """Hold the lease of a piece of work inside the block, renewed by a thread; None: another holds it."""
        lease = self._take(work, note)
        try:
            yield lease
        finally:
            if lease is not None:
                lease.end()

    def _take(self, work: str, note: str) -> Lease | None:
        earlier = self._of(work)
        number = 0
        if earlier:
            newest = earlier[-1]
            if not self._is_free(newest):
                return None
            number = _number(newest) + 1
        file = self.folder / f"{work}.lease-{number}"
        try:
            with naming(file):
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except DataError as error:
            if isinstance(error.__cause__, FileExistsError):  # another was quicker
                return None
            raise
        try:
            for one in earlier:
                self._forget(_said_by(_content(one))["note"])
            return Lease(file, descriptor, self.lease_s, note)
        except BaseException:
            os.close(descriptor)
            raise

    def holder(self, work: str) -> str:
        """Who holds the lease, for a message: `HOST, pid N`."""
        newest = self._of(work)[-1:]
        record = _said_by(_content(newest[0])) if newest else _UNKNOWN
        return f"{record['host']}, pid {record['pid']}"

    def clear(self, work: str) -> None:
        """Remove the leases of work that is done, or that nobody can do any more; what is no lease stays."""
        for file in self._of(work):
            if (record := _said_by(_content(file))) is not _UNKNOWN:
                self._forget(record["note"])
                file.unlink(missing_ok=True)
            self._seen.pop(file, None)

    def _is_free(self, file: Path) -> bool:
        """Whether a lease was given back, or says the same for too long already."""
        content = _content(file)
        if _said_by(content)["given_back"]:
            return True
        now = time.monotonic()
        said, since = self._seen.get(file, (None, now))
        if said != content:
            self._seen[file] = (content, now)
            return False
        return now - since > self.lease_s

    def _of(self, work: str) -> list[Path]:
        """The leases of a piece of work, oldest first."""
        found = [path for path in self.folder.iterdir() if _NUMBER.sub("", path.name) == work != path.name]
        return sorted(found, key=_number)


_UNKNOWN = LeaseRecord(host="an unknown host", pid=0, renewed=0, until=0, given_back=False, note="")


def _content(file: Path) -> bytes:
    """What is written in a lease; nothing, where it has just gone, or is a link or a folder, which nobody renews."""
    with suppress(DataError):
        return read_regular(file, at_most=_MOST_BYTES, follow=False)
    return b""


def _said_by(content: bytes) -> LeaseRecord:
    """What a lease says; one that is being written, or is none, says nothing."""
    with suppress(DataError):
        return parse_json(content, LeaseRecord)
    return _UNKNOWN


def _number(file: Path) -> int:
    match = _NUMBER.search(file.name)
    assert match is not None, "asked of a lease's name alone"
    return int(match[1])


def _next(file: Path) -> Path:
    return file.with_name(_NUMBER.sub(f".lease-{_number(file) + 1}", file.name))
