"""Files that others name: opened only where they are regular ones, of bounded size.

A FIFO or a terminal would be waited for, a device would fill memory or do something when it is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from lumos_pl.errors import DataError, LumosError

MOST_BYTES = 1 << 30  # of a file that is read whole
_PART_BYTES = 16 << 20  # that are copied at once
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(
    file: str | Path, *, at_most: int | None = MOST_BYTES, follow: bool = True, error: type[LumosError] = DataError
) -> BufferedReader:
    """Open a file for reading; a context manager, as what `open` gives.

    Args:
        at_most: bytes that it may have; None: any number, for who reads it in parts.
        follow: also where the name is a symbolic link.
        error: what to raise: whose file it is decides the exit status.
    Raises:
        error: there is none, it cannot be opened, is no regular file, or is too large.
    """
    try:
        _check(Path(file).stat(follow_symlinks=follow), file, at_most, error)  # opening a FIFO is felt at its other end
        descriptor = os.open(file, _FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
        stream = open(descriptor, "rb")  # noqa: PTH123, SIM115 (a descriptor, which the caller closes)
        try:
            _check(os.fstat(descriptor), file, at_most, error)  # since then the name may have come to stand for another
        except BaseException:
            stream.close()
            raise
        return stream
    except LumosError:
        raise
    except (OSError, ValueError) as found:  # ValueError: a path with NUL
        raise unreadable(file, found, error) from found


def read_regular(
    file: str | Path, *, at_most: int = MOST_BYTES, follow: bool = True, error: type[LumosError] = DataError
) -> bytes:
    """The content, as much as there is when it is opened; see `open_regular`."""
    with open_regular(file, at_most=at_most, follow=follow, error=error) as stream:
        try:
            return stream.read(size_of(stream))
        except OSError as found:
            raise unreadable(file, found, error) from found


def copy_regular(source: str | Path, target: Path) -> str:
    """Copy a file to one that is not there yet; the two share no bytes but where the file system itself does so.

    Returns:
        the sha256 of the copy, read back.
    Raises:
        DataError: see `open_regular`.
        OSError: the target is there, or cannot be written.
    """
    with open_regular(source, at_most=None) as read, target.open("xb") as written:
        left = size_of(read)
        while left and (n := _copy_some(read.fileno(), written.fileno(), left)):
            left -= n
        os.fsync(written.fileno())
    with target.open("rb") as copy:
        return hashlib.file_digest(copy, "sha256").hexdigest()


def _copy_some(source: int, target: int, most: int) -> int:
    """Copy at most so many bytes from where the two files stand; how many it were, 0 at the end."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, most)
        except OSError as error:  # not between these file systems, or not by this kernel
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
    data = os.read(source, min(most, _PART_BYTES))
    with open(target, "wb", closefd=False) as stream:
        return stream.write(data)


def size_of(stream: BufferedReader) -> int:
    """Bytes that the open file has now."""
    return os.fstat(stream.fileno()).st_size


def unreadable(file: str | Path, found: OSError | ValueError, error: type[LumosError] = DataError) -> LumosError:
    """What is said where the operating system refuses to open or to read a file."""
    return error("cannot be read", file=Path(file), got=getattr(found, "strerror", None) or found)


def _check(found: os.stat_result, file: str | Path, at_most: int | None, error: type[LumosError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise error("not a regular file", file=Path(file))
    if at_most is not None and found.st_size > at_most:
        got, expected = f"{found.st_size} bytes", f"at most {at_most}"
        raise error("file too large", file=Path(file), got=got, expected=expected)
