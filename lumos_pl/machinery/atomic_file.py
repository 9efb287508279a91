"""Files that are written whole or not at all, and their folders."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lumos_pl.errors import DataError, FileError, LumosError
from lumos_pl.machinery.own_files import digest_of, partial_of, place, rename_new, write_through

_WITHOUT_FOLDERS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""What file systems say that force no folders to the disk."""

Content = bytes | str | Iterable[bytes]


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise what the system says about writing as a FileError that names `file`: a full disk does not."""
    try:
        yield
    except LumosError:
        raise
    except OSError as error:
        match error:
            case FileNotFoundError() | NotADirectoryError():
                first = "make its folder first"
            case PermissionError():
                first = "see that its folder may be written to"
            case _:
                first = "free space"
        raise FileError.of(error, what="cannot be written", file=file, fix=f"{first}, or write elsewhere") from error


def write_atomically(file: Path, content: Content, *, root: Path | None = None) -> None:
    """Write a file so that after any crash or power cut it is the old or the new one.

    A file of another's that has the name is kept under a new one, see `own_files.place`.

    Args:
        content: text is written as UTF-8; what is too large for memory comes in parts.
        root: the folder whose record notes it, see `own_files.note`.
    Raises:
        FileError: it cannot be written; nothing is left of it.
    """
    with naming(file), _written(file, content) as (partial, digest):
        place(partial, file, digest, root=root)


class TakenError(DataError):
    """Another's file has the name."""


def write_new(file: Path, content: Content) -> bool:
    """Write a file under a name that nothing has, whole or not at all; no record of it is kept.

    Returns:
        False: a file of the same content was there already, and stays.
    Raises:
        TakenError: something else has the name.
        FileError: it cannot be written; nothing is left of it.
    """
    with naming(file), _written(file, content) as (partial, digest):
        if rename_new(partial, file):
            return True
        if digest_of(file) == digest:
            return False
    raise TakenError("another's file has this name", file=file, fix="move it away, or write elsewhere")


def replace_regular(file: Path, content: bytes) -> None:
    """Write a file that a caller names, over a regular one that has the name; no record of it is kept.

    Raises:
        FileError: it cannot be written, or what has the name is a link, a folder or a device.
    """
    with naming(file), _written(file, content) as (partial, _):
        if not rename_new(partial, file):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "not a regular file", str(file))
            partial.replace(file)


@contextmanager
def _written(file: Path, content: Content) -> Iterator[tuple[Path, str]]:
    """A partial of what `file` is to be, all of it on the disk, and its digest; it is gone afterwards."""
    parts = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    partial, digest = partial_of(file), hashlib.sha256()
    try:
        with partial.open("xb") as stream:
            for part in parts:
                digest.update(part)
                stream.write(part)
            write_through(stream, b"")
        yield partial, digest.hexdigest()
        sync(file.parent)  # the new name, too, must survive
    finally:
        partial.unlink(missing_ok=True)


def make_folder(
    folder: Path,
    *,
    within: Path | None = None,
    error: type[LumosError] = DataError,
    where: str | None = None,
) -> None:
    """Make a folder, and those that it lies in, unless it is there.

    Args:
        within: a folder that the user chose; what lies between the two must not be links, which lead to another's.
        error: what to raise where that cannot be: a ConfigError where the user chose the place.
        where: the flag or setting that names it.
    """
    try:
        if within is not None:
            for part in (*reversed(folder.relative_to(within).parents), folder.relative_to(within)):
                if part.name and (within / part).is_symlink():
                    raise FileExistsError(errno.EEXIST, "a link to elsewhere has this name")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as found:  # ValueError: a path with NUL
        said = getattr(found, "strerror", None) or str(found)
        raise error("folder cannot be made", file=folder, where=where, got=said, fix="write elsewhere") from found


def sync(path: Path) -> bool:
    """Force a file, or a folder's list of names, to the disk; False: of this folder the file system cannot."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _WITHOUT_FOLDERS and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return False  # a name that was given is on the disk when the system sees fit, and no sooner
        raise
    finally:
        os.close(descriptor)
    return True
