"""Files from elsewhere, kept on this machine under the sha256 of their content: bounded, and shared by its processes.

    FOLDER/lumos-cache/.lock               held for moments: who makes room; in it, the bytes that are spoken for
                       1f0c...             a whole file of this digest; locked (shared) while somebody reads it
                       52ab....6553600.partial
                                           comes just now, with the room that it takes; locked by who fetches it

A lock goes with its process: what is partial and not locked is left over from one that was killed, and whoever makes
room next removes it. What is locked is never removed, and of all else the least recently used goes first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.file_lock import WITHOUT_LOCKS
from lumos_pl.machinery.retrying import is_full, passes
from lumos_pl.machinery.store import PIECE_BYTES

SUBFOLDER = "lumos-cache"  # of what the user names, whose own files may be called by digests, too
WAIT_S = 300.0
_ASK_S = 0.02  # again, after so many seconds
_SPARE = 16  # a share of the room, made free beyond what is needed: looking at all files takes time
_FILE = re.compile(r"[0-9a-f]{64}(?:\.(?P<room>[0-9]+)\.partial)?")


class OtherContentError(Exception):
    """What came is not of the digest that was asked for.

    Args:
        data: what came; beyond the size that was expected, one byte at the most.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__("other content than was asked for")
        self.data = data


def default_folder() -> Path:
    """`$XDG_CACHE_HOME`, or `~/.cache`; where there is no home, one for this user among the temporary files."""
    named = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):
        return Path(named) if named else Path.home() / ".cache"
    return Path(tempfile.gettempdir()) / f"lumos-{os.getuid()}"


@dataclass(frozen=True)
class ContentCache:
    """
    Args:
        folder: on a disk of this machine; made if need be.
        max_bytes: of all files in it together at any time, also of those that are just coming.
        where: the setting, for what is said of it.
    """

    folder: Path
    max_bytes: int
    where: str = "cache"

    def file(self, digest: str) -> Path:
        """Where a file of a digest is, if it is there."""
        return self._files / digest

    def held(self, digest: str) -> BufferedReader | None:
        """A file that is there, which stays while it is open; None: it is not. It counts as used now."""
        try:
            descriptor = _open(self.file(digest), os.O_RDONLY)
        except FileNotFoundError:
            return None
        if self._locked(descriptor, fcntl.LOCK_SH) and os.fstat(descriptor).st_nlink:
            with suppress(PermissionError):  # of another user's
                os.utime(descriptor)
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)  # is just being removed
        return None

    def bring(
        self, digest: str, n_bytes: int, fetch: Callable[[Path], object], *, within_s: float = WAIT_S
    ) -> BufferedReader:
        """The file of a digest, from here or from where it lies; one process fetches it, others wait for that.

        Args:
            n_bytes: its size.
            fetch: writes it into a file, at most `PIECE_BYTES` more than it should be.
            within_s: how long to wait for another process that fetches it, or for room.
        Raises:
            OtherContentError: what came is not it.
            TemporaryError: no room, or another process takes longer.
            ConfigError: the folder cannot be used, or is too small.
            Exception: what `fetch` raises.
        """
        self._check(n_bytes)
        until = time.monotonic() + within_s
        partial = self._files / f"{digest}.{n_bytes + PIECE_BYTES}.partial"
        while True:
            with self._told():
                if (file := self.held(digest)) is not None:
                    return file
                with self._alone(until) as ledger:
                    begun = self._begun(ledger, partial, n_bytes + PIECE_BYTES)
            if isinstance(begun, int):
                return self._fetched(begun, partial, digest, n_bytes, fetch)
            if time.monotonic() > until:
                what, got, fix = begun
                raise TemporaryError(what, file=partial, where=self.where, got=got, fix=fix)
            time.sleep(_ASK_S)

    def sweep(self) -> None:
        """Remove what killed processes left over, and count anew what is taken."""
        self._check(0)
        with self._told(), self._alone(time.monotonic() + WAIT_S) as ledger:
            os.pwrite(ledger, f"{self._evict(0, None):024d}".encode(), 0)

    def drop(self, digest: str) -> None:
        """Remove a file whose content is no longer what it was."""
        self.file(digest).unlink(missing_ok=True)

    # -- one file ------------------------------------------------------------------------------

    def _begun(self, ledger: int, partial: Path, room: int) -> int | tuple[str, str, str]:
        """The partial file, locked by this call, with its room spoken for; or what is in the way, and what helps."""
        obstacle = "another process fetches this file", "it is not done", "see whether that process still runs"
        descriptor = _open(partial, os.O_RDWR | os.O_CREAT)
        if not self._locked(descriptor, fcntl.LOCK_EX) or not _is_at(descriptor, partial):
            os.close(descriptor)
            return obstacle
        if not os.path.lexists(self.file(partial.name.partition(".")[0])):
            noted = os.pread(ledger, 32, 0)
            taken = int(noted) if noted.isdigit() else None
            if taken is None or taken + room > self.max_bytes:
                taken = self._evict(room, partial)
            os.ftruncate(ledger, 0)  # what is in use now need not be the next time
            if taken + room <= self.max_bytes:
                os.pwrite(ledger, f"{taken + room:024d}".encode(), 0)
                return descriptor
            obstacle = (
                "no room in the cache",
                f"{taken} of {self.max_bytes} bytes in use",
                f"raise {self.where}.max_bytes",
            )
        partial.unlink()
        os.close(descriptor)
        return obstacle

    def _fetched(
        self,
        descriptor: int,
        partial: Path,
        digest: str,
        n_bytes: int,
        fetch: Callable[[Path], object],
    ) -> BufferedReader:
        file = os.fdopen(descriptor, "rb")
        try:
            if _fills_the_disk(partial, fetch):
                raise self._full()
            if not _is_at(descriptor, partial):
                raise OSError(errno.EIO, "another file has come into the place of the one that was fetched")
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                file.seek(0)
                raise OtherContentError(file.read(n_bytes + 1))
            with self._alone(time.monotonic() + WAIT_S):  # or who counts meanwhile may meet neither of the names
                partial.rename(self.file(digest))
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            file.seek(0)
            return file
        except BaseException:
            partial.unlink(missing_ok=True)
            file.close()
            raise

    def _locked(self, descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            said, fix = error.strerror, f"name a folder on a disk of this machine: {self.where}.dir"
            raise ConfigError("this file system has no locks", file=self._files, got=said, fix=fix) from error
        return True

    # -- all files -----------------------------------------------------------------------------

    @property
    def _files(self) -> Path:
        return self.folder / SUBFOLDER

    def _check(self, n_bytes: int) -> None:
        """Raise ConfigError unless there is a folder that can hold such a file at all."""
        if n_bytes + PIECE_BYTES > self.max_bytes:
            got, expected = f"{self.max_bytes} bytes", f"{n_bytes + PIECE_BYTES} or more, for one of the files"
            raise ConfigError("the cache is too small", where=f"{self.where}.max_bytes", got=got, expected=expected)
        with self._told():
            self._files.mkdir(parents=True, exist_ok=True)
            if not os.access(self._files, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it may not be written to", str(self._files))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What is wrong with the cache's own files is said of them, and not of the file that was to come."""
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise self._full() from error
            if passes(error):
                raise
            file, fix = error.filename or self._files, "give another folder, or see to this one"
            said = error.strerror or str(error)
            where = f"{self.where}.dir"
            raise ConfigError("no cache can be kept here", file=file, where=where, got=said, fix=fix) from error

    def _full(self) -> TemporaryError:
        fix = f"free space there, or give another folder: {self.where}.dir"
        return TemporaryError("no room on the disk of the cache", file=self._files, fix=fix)

    def _evict(self, n_bytes: int, partial: Path | None) -> int:
        """Remove what is left over, and what was used least recently; how many bytes are taken then."""
        taken, whole = 0, list[tuple[float, int, Path]]()
        with os.scandir(self._files) as entries:
            for entry in entries:
                match = _FILE.fullmatch(entry.name)
                if match is None or (partial is not None and entry.name == partial.name):
                    continue
                path = Path(entry.path)
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if match["room"] is None:
                        whole.append((found.st_mtime, found.st_size, path))
                        taken += found.st_size
                    elif not self._removed(path):
                        taken += max(found.st_size, int(match["room"]))
        wanted = self.max_bytes - n_bytes
        if taken <= wanted:
            return taken
        for _, size, path in sorted(whole):
            if taken <= wanted - min(wanted, self.max_bytes // _SPARE):
                break
            taken -= size if self._removed(path) else 0
        return taken

    def _removed(self, path: Path) -> bool:
        """Remove a file unless somebody has it locked; whether it is gone."""
        try:
            descriptor = _open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        except PermissionError:  # of another user's
            return False
        try:
            if not self._locked(descriptor, fcntl.LOCK_EX):
                return False
            if _is_at(descriptor, path):
                path.unlink()
            return True
        except PermissionError:
            return False
        finally:
            os.close(descriptor)

    @contextmanager
    def _alone(self, until: float) -> Iterator[int]:
        """The ledger, which nobody else has open so; a number of bytes, an upper bound of what is taken."""
        ledger = _open(self._files / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            while not self._locked(ledger, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    fix = "see whether a process that holds it is stopped"
                    raise TemporaryError("the cache is locked", file=self._files / ".lock", fix=fix)
                time.sleep(_ASK_S / 10)
            yield ledger
        finally:
            os.close(ledger)


def _open(path: Path, flags: int) -> int:
    """A file of the cache's own, which is a regular one; nothing is waited for, and no link is followed."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _fills_the_disk(file: Path, fetch: Callable[[Path], object]) -> bool:
    """Fetch a file; whether there was no room for it here, which is told apart from what is wrong at the other end."""
    try:
        fetch(file)
    except Exception as error:
        if not is_full(error):
            raise
        return True
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a name still stands for the file that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False
