"""Whose a file is: only what was written here, and is still as it was written, is ever replaced or removed.

    FOLDER/sheet.png           written here: the record has its digest
           sheet.kept-1.png    a file of the user's that lay where sheet.png was to go
           .written            the record: a line `sha256  name` for whatever was written into this folder
           .sheet.png.*        being written, under a name that nobody guesses

A record is a promise to files, not a lock: who holds the folder is `file_lock`'s business.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BufferedWriter
from itertools import count
from pathlib import Path

from lumos_pl.errors import DataError
from lumos_pl.machinery.regular_file import open_regular, read_regular

RECORD = ".written"
_LINE = re.compile(rb"[0-9a-f]{64}  .+\n", re.DOTALL)  # of a record
_LONGEST_LINE = 1 << 16

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{8})(?P<check>[0-9a-f]{8})\.partial", re.DOTALL)
_LONGEST_NAME = 200  # bytes, so that there is room for what `partial_of` and `keep_aside` add

_NO_REPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2
_AT_WORKING_DIRECTORY = -100
_LACKING = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}  # what a file system without them says


def partial_of(file: Path) -> Path:
    """A new name beside a file to write it under; nothing has it, nobody can have foreseen it, and no other is like it.

    It ends with 8 digits at random and 8 that follow from the rest.
    """
    name = os.fsdecode(os.fsencode(file.name)[:_LONGEST_NAME])
    token = secrets.token_hex(4)
    return file.with_name(f".{name}.{token}{_check(name, token)}.partial")


def _check(name: str, token: str) -> str:
    return hashlib.sha256(os.fsencode(f"{name}.{token}")).hexdigest()[:8]


def name_of(partial: Path) -> str | None:
    """Of what a file is a partial, as `partial_of` names them; None: it has another name."""
    match = _PARTIAL.fullmatch(partial.name)
    return match["name"] if match and match["check"] == _check(match["name"], match["token"]) else None


def remove_partials(folder: Path, *, of: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what interrupted writes left in a folder that nobody else writes in now.

    Args:
        of: whether a name is one of those that the caller writes.
    """
    for path in folder.iterdir():
        name = name_of(path)
        if name is None or not of(name):
            continue
        delete(path)


def delete(path: Path) -> None:
    """Remove a file or link, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # where nothing may be written, the system refuses to remove what is not there, too
        path.unlink(missing_ok=True)


def note(file: Path, digest: str, *, root: Path | None = None) -> None:
    """Put into the folder's record that a file with this sha256 is written here, before it is there.

    Args:
        root: the folder whose record it is, if not the file's own: where nothing else may lie beside the file.
    """
    record, name = _entry(file, root)
    line = f"{digest}  {name}\n".encode(errors="surrogateescape")
    while not _is_record(record):
        partial = partial_of(record)
        try:
            with partial.open("xb") as stream:
                write_through(stream, line)
            if rename_new(partial, record):
                return
        finally:
            partial.unlink(missing_ok=True)
        if not _is_record(record):  # which another process may have just begun
            with suppress(FileNotFoundError):
                keep_aside(record)
    append(record, line)


def append(file: Path, line: bytes) -> None:
    """Add a line to a file that grows, made if need be, and force it to the disk. No link is followed.

    Raises:
        OSError: it is no regular file.
    """
    with open_to_append(file) as stream:
        write_through(stream, line)


def write_through(stream: BufferedWriter, data: bytes) -> None:
    """Write and force to the disk."""
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def open_to_append(file: Path) -> BufferedWriter:
    """Open a file that grows, made if need be. A link is not followed; what shares its content keeps it as it is.

    Raises:
        OSError: it is no regular file.
    """
    while True:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return os.fdopen(descriptor, "ab")
        os.close(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EEXIST, "not a regular file", str(file))
        partial = partial_of(file)
        shutil.copyfile(file, partial, follow_symlinks=False)
        partial.replace(file)


def digests_noted(file: Path, *, root: Path | None = None) -> set[str]:
    """The sha256 of all that was ever written here under this name; none: nothing was."""
    record, name = _entry(file, root)
    ending = f"  {name}\n".encode(errors="surrogateescape")
    with suppress(DataError), open_regular(record, at_most=None, follow=False) as stream:
        return {line[:64].decode() for line in stream if line[64:] == ending}
    return set()


def ever_written(file: Path) -> bool:
    """Whether a file of this name was ever written here: what there is now may be another."""
    return bool(digests_noted(file))


def is_own(file: Path, *, root: Path | None = None) -> bool:
    """Whether a file is one that was written here, and unchanged since."""
    noted = digests_noted(file, root=root)
    return bool(noted) and digest_of(file) in noted


def remove_own(file: Path, *, root: Path | None = None) -> bool:
    """Remove a file if it is own; whether it was, or there was none. Another stays as it is."""
    if os.path.lexists(file) and not is_own(file, root=root):
        return False
    file.unlink(missing_ok=True)
    return True


def place(partial: Path, file: Path, digest: str, *, root: Path | None = None) -> None:
    """Give a file that was written its name at once: whoever looks finds the old file or the new one.

    Another's file that has the name is kept beside it under another one, said as a warning; a file of the same
    content stays, whoever's it is.

    Args:
        partial: a regular file in the same folder, all of it on the disk; it is gone afterwards.
        digest: its sha256.
        root: see `note`.
    """
    note(file, digest, root=root)
    if digest_of(file) == digest:
        partial.unlink()
        return
    put(partial, file, own=lambda found: digest_of(found) in digests_noted(file, root=root))  # asked where it is there


def put(
    partial: Path, file: Path, *, own: Callable[[Path], bool], remove: Callable[[Path], object] = Path.unlink
) -> None:
    """Give what was written, a file, folder or link, its name at once; what has it is replaced if own, else kept aside.

    Args:
        partial: in the same folder; it is gone afterwards.
        own: whether what lies at a path may go; it may have been given another name than `file` to be looked at.
        remove: how it goes.
    """
    while True:
        if not os.path.lexists(file):
            if rename_new(partial, file):
                return
        elif own(file):
            _exchange(partial, file)
            break
        else:
            with suppress(FileNotFoundError):  # it has just gone
                keep_aside(file)
    if not os.path.lexists(partial):
        return
    if own(partial):
        remove(partial)
    else:
        keep_aside(partial, name=file.name)  # it came between looking and replacing


def keep_aside(file: Path, *, name: str | None = None, why: str = "it was not written here") -> Path:
    """Rename another's file or folder to a name that nothing has, say so, and return it: `x.png` to `x.kept-1.png`.

    Args:
        name: from which the new one is made, if not from its own.
        why: it is not what belongs there.
    """
    wanted = Path(name or file.name)
    stem, suffix = (os.fsdecode(os.fsencode(part)[:_LONGEST_NAME]) for part in (wanted.stem, wanted.suffix[:20]))
    number = 1
    while True:
        kept = file.with_name(f"{stem}.kept-{number}{suffix}")
        if rename_new(file, kept):
            said = f"lumos: kept {file.with_name(wanted.name)} | {why} | it is now {kept.name}"
            logging.getLogger(__name__).warning("%s", " ".join(said.split()))
            return kept
        number += 1


def keep_copy(file: Path) -> Path:
    """Copy a file whose content is not ours to `NAME.odd-N` beside it, before it is written anew; returns the copy."""
    data = read_regular(file)
    for number in count(1):
        copy = file.with_name(f"{file.name}.odd-{number}")
        try:
            with copy.open("xb") as stream:
                write_through(stream, data)  # before what it is a copy of is gone
            return copy
        except FileExistsError:
            if copy.is_file() and not copy.is_symlink() and copy.read_bytes() == data:
                return copy  # of an attempt that was stopped
    raise AssertionError("numbers have no end")


def rename_new(source: Path, target: Path) -> bool:
    """Rename a file or folder to a name that nothing has; False: something has it."""
    failure = _renameat2(source, target, _NO_REPLACE)
    if failure in _LACKING:
        return _rename_by_link(source, target)
    if failure == errno.EEXIST:
        return False
    if failure:
        raise OSError(failure, os.strerror(failure), str(source), None, str(target))
    return True


def _rename_by_link(source: Path, target: Path) -> bool:
    """As `rename_new`, where the system has no call for that, as on NFS: a second name is given to free names alone.

    A folder has no second name, nor has a file everywhere; then between looking and renaming another may take the name.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samestat(source.lstat(), target.lstat()):  # NFS may say so of what it has just done
            return False
    except (OSError, NotImplementedError):
        if os.path.lexists(target):
            return False
        source.rename(target)
        return True
    source.unlink()
    return True


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one go; where the system cannot, a file's place is taken, so that `one` has no name more."""
    failure = _renameat2(one, other, _EXCHANGE)
    if failure in _LACKING and other.is_dir() and not other.is_symlink():  # which nothing replaces
        aside = partial_of(other)
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
    elif failure in _LACKING or failure == errno.ENOENT:  # the latter: `other` has just gone
        one.replace(other)
    elif failure:
        raise OSError(failure, os.strerror(failure), str(one), None, str(other))


def _renameat2(source: Path, target: Path, flags: int) -> int:
    """The error number, 0 where it went well."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # not Linux
        return errno.ENOSYS
    here = _AT_WORKING_DIRECTORY
    failed = function(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flags))
    return ctypes.get_errno() if failed else 0


def digest_of(file: Path) -> str | None:
    """The sha256 of a regular file; None: it is a link, a folder or something else, or gone."""
    with suppress(DataError), open_regular(file, at_most=None, follow=False) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
    return None


def _entry(file: Path, root: Path | None) -> tuple[Path, str]:
    """The record for a file, and its name there, on a line of its own."""
    folder = root or file.parent
    return folder / RECORD, file.relative_to(folder).as_posix().replace("\\", "\\\\").replace("\n", "\\n")


def _is_record(file: Path) -> bool:
    """Whether a file is a record by its first line."""
    with suppress(DataError), open_regular(file, at_most=None, follow=False) as stream:
        return bool(_LINE.match(stream.readline(_LONGEST_LINE)))
    return False
