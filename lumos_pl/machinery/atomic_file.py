"""Files that are written whole or not at all, and their folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumos_pl.errors import DataError, FileError, LumosError
from lumos_pl.machinery.own_files import partial_of, place


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise what the system says about writing as a FileError that names `file`: a full disk does not."""
    try:
        yield
    except LumosError:
        raise
    except OSError as error:
        raise FileError.of(error, what="cannot be written", file=file, fix="free space, or write elsewhere") from error


def write_atomically(file: Path, content: bytes | str) -> None:
    """Write a file so that after any crash or power cut it is the old or the new one.

    A file of another's that has the name is kept under a new one, see `own_files.place`.

    Args:
        content: text is written as UTF-8.
    Raises:
        FileError: it cannot be written; nothing is left of it.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = partial_of(file)
    with naming(file):
        try:
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            place(partial, file, hashlib.sha256(data).hexdigest())
            sync(file.parent)  # the new name, too, must survive
        finally:
            partial.unlink(missing_ok=True)


def make_folder(
    folder: Path, *, error: type[LumosError] = DataError, where: str | None = None, fix: str | None = "write elsewhere"
) -> None:
    """Make a folder, and those that it lies in, unless it is there.

    Args:
        error: what to raise where that cannot be: a ConfigError where the user chose the place.
        where: the flag or setting that names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as found:  # ValueError: a path with NUL
        said = getattr(found, "strerror", None) or str(found)
        raise error("folder cannot be made", file=folder, where=where, got=said, fix=fix) from found


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
