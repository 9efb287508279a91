"""One process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.atomic_file import naming

_MOST_BYTES = 32  # of what is looked at: a pid is shorter
_NO_REGULAR_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO}  # but a link, a folder, a socket
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}  # what systems say there


@contextmanager
def file_lock(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a second process out of `file`'s folder; the lock goes with the process, however it ends.

    The file stays, empty: whoever removed it could remove one that a third process has just locked. One that has
    several names, as in a backup of hard links, is locked and not written.

    Args:
        wait: until the other process lets go; whom it waits for is said.
    Raises:
        TemporaryError: another process holds the lock, with its pid.
        ConfigError: the file is another's, no regular file with a pid alone; the file system has no locks; or who waits
            for this process holds the lock, as it runs a script without `if __name__ == "__main__":` again.
    """
    with naming(file):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno not in _NO_REGULAR_FILE:
                raise
            raise _anothers(file) from None
    try:
        with naming(file):
            _lock(descriptor, file, wait=wait)
            _holder(descriptor, file)  # was killed, if there is one
            _write(descriptor, str(os.getpid()))
        try:
            yield
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = f"pid {_holder(descriptor, file) or 'unknown'}"
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # whoever waits for it holds the lock
            fix = 'put what it does under `if __name__ == "__main__":`'
            what = "a worker process runs the script that started it"
            raise ConfigError(what, file=file.parent, got=holder, fix=fix) from None
        if not wait:
            fix = "wait for it, or stop it"
            raise TemporaryError("another process writes here", file=file.parent, got=holder, fix=fix) from None
        logging.getLogger(__name__).warning("waiting for another process: %s | %s", file.parent, holder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        fix = "mount it with locks (Lustre: -o flock; NFS: with its lock daemon), or write elsewhere"
        said = error.strerror or str(error)
        raise ConfigError("this file system has no locks", file=file, where="flock", got=said, fix=fix) from error


def _holder(descriptor: int, file: Path) -> str:
    """The pid in a lock's file, empty if there is none; refuses a file that is no lock's."""
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode):
        content = os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace")
        if not content or (content.isdecimal() and content.isascii()):
            return content
    raise _anothers(file)


def _write(descriptor: int, content: str) -> None:
    if os.fstat(descriptor).st_nlink <= 1:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, content.encode(), 0)


def _anothers(file: Path) -> ConfigError:
    return ConfigError(
        "another's file is in the place of a lock",
        file=file,
        expected="no file, or one with a process's number alone",
        fix="move it away",
    )
