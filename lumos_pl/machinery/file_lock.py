"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import naming


@contextmanager
def file_lock(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a second process out of `file`'s folder; the lock goes with the process, however it ends.

    The file stays, empty: whoever removed it could remove one that a third process has just locked.

    Args:
        wait: until the other process lets go.
    Raises:
        ConfigError: another process holds the lock, with its pid.
    """
    with naming(file):
        stream = file.open("a+")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise ConfigError(
                "another process writes here",
                file=file.parent,
                got=f"pid {stream.read().strip()}",
                fix="wait for it, or stop it",
            ) from None
        with naming(file):
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)
