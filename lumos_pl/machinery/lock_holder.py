"""Who holds a lock, asked without taking it: whoever took it for a moment could keep a process from starting."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lumos_pl.errors import DataError
from lumos_pl.machinery.regular_file import open_regular

LOCKS = Path("/proc/locks")  # Linux: those of this machine, as far as their processes can be seen from here
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid
_MOST_BYTES = 32  # of what is looked at: a pid is shorter


@dataclass(frozen=True)
class Holder:
    """What a lock's file tells.

    Args:
        is_held: None: this machine cannot tell, for it may be held on another one.
        pid: that stands in the file: of who holds it, or of who was killed; None: whoever held it let go.
    """

    is_held: bool | None
    pid: int | None


def lock_holder(file: Path, *, here: bool) -> Holder:
    """Whether a `file_lock` is held; the file is only read.

    Args:
        here: whether the process that may hold it is, or was, one of this machine.
    """
    try:
        with open_regular(file, at_most=None, follow=False) as stream:
            content = stream.read(_MOST_BYTES)
            status, asked = os.fstat(stream.fileno()), _asked(stream.fileno())
    except DataError:  # there is none
        return Holder(False, None)
    pid = int(content) if content.isdigit() else None
    if asked or _is_listed(status, pid):
        return Holder(True, pid)
    if pid is None:
        return Holder(False, None)
    return Holder(False if here and LOCKS.exists() else None, pid)


def _asked(descriptor: int) -> bool:
    """Whether somebody else's lock is in the way, as file systems of a network tell, which know of other machines."""
    with suppress(OSError, struct.error):
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)
    return False


def _is_listed(status: os.stat_result, pid: int | None) -> bool:
    """Whether the system lists a lock on the file; the number of its device differs on some file systems."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            *_, owner, place, _start, _end = line.split()
            where, _, inode = place.rpartition(":")
            if inode == str(status.st_ino) and (where == device or owner == str(pid)):
                return True
    return False
