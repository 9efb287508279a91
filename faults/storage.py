"""Storage that fails for a while: what Python asks the system for, refused as networks' file systems refuse it.

It is installed in a process that is meant to suffer from it, before its work begins; what it forks suffers too.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import torch

READS = ("open", "read", "list")
WRITES = ("create", "write", "sync", "rename")
SHORT = -1  # instead of an error: a read that brings less than there is
CHANGED = -2  # instead of an error: a read that brings another byte
LONG = 10**6  # times: more than anything is tried
NAMES = {SHORT: "short read", CHANGED: "changed byte"}


@dataclass(kw_only=True)
class Trouble:
    """Operations on files under a folder that fail.

    Args:
        error: errno, or SHORT or CHANGED.
        under: the folder.
        name: pattern of the names of the files.
        operations: that fail.
        after: so many of them go well first, in each process.
        times: so many fail then, in each process.
        seconds: or, all of them for so long from the first that fails; nothing else ends it then.
        since: when it began, by the clock that all processes of a machine share, if that is not the first failure.
    """

    error: int
    under: str
    operations: tuple[str, ...]
    name: str = "*"
    after: int = 0
    times: int = 1
    seconds: float | None = None
    since: float | None = None
    met: int = field(default=0, init=False)

    def strikes(self, operation: str, path: str) -> bool:
        if operation not in self.operations or not path.startswith(self.under):
            return False
        if not fnmatch(path.rpartition("/")[2], self.name):
            return False
        self.met += 1
        if self.met <= self.after:
            return False
        self.since = self.since or time.monotonic()
        if self.seconds is not None:
            return time.monotonic() - self.since < self.seconds
        return self.met <= self.after + self.times

    @property
    def is_on(self) -> bool:
        """Whether a full disk says that it is full."""
        return self.seconds is not None and self.since is not None and time.monotonic() - self.since < self.seconds

    def __str__(self) -> str:
        kind = NAMES.get(self.error) or errno.errorcode[self.error]
        long = f"{self.seconds:.1f} s" if self.seconds is not None else f"{self.times} times"
        where = f"{'/'.join(self.operations)} of {Path(self.under).name}/{self.name}"
        return f"{kind} at {where} {long}, after {self.after}"


@dataclass(frozen=True)
class Storage:
    """What fails, and where it is noted what failed: a line each, so that processes share the file."""

    troubles: Sequence[Trouble]
    log: Path | None = None

    def meet(self, operation: str, path: object) -> int:
        """0, SHORT, CHANGED; raises OSError where the operation is refused."""
        if not isinstance(path, str | bytes | os.PathLike):
            return 0
        named = os.fsdecode(path)
        for trouble in self.troubles:
            if trouble.strikes(operation, named):
                self._note(operation, named, trouble)
                if trouble.error > 0:
                    raise OSError(trouble.error, os.strerror(trouble.error), named)
                return trouble.error
        return 0

    def is_full(self, path: str) -> bool:
        return any(one.error == errno.ENOSPC and path.startswith(one.under) and one.is_on for one in self.troubles)

    def _note(self, operation: str, path: str, trouble: Trouble) -> None:
        if self.log is not None:
            descriptor = _REAL["open"](self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            _REAL["write"](descriptor, f"{trouble.error} {operation} {path}\n".encode())
            os.close(descriptor)

    def install(self) -> None:
        """For the rest of this process, and of those that it forks."""
        _Raw.storage = self
        builtins.open = io.open = self._open
        for name, operation in NAMED.items():
            setattr(os, name, self._named(getattr(os, name), operation))
        os.open = self._os_open
        for name, operation in DESCRIPTORS.items():
            setattr(os, name, self._described(getattr(os, name), operation))
        os.statvfs = self._statvfs
        save = torch.save

        def saved(content: object, file: Any, *rest: Any, **options: Any) -> None:
            """Through Python's own files: torch's would not hear of this."""
            if not isinstance(file, str | os.PathLike):
                return save(content, file, *rest, **options)
            with open(file, "wb") as stream:  # noqa: PTH123
                save(content, stream, *rest, **options)

        torch.save = saved  # type: ignore[assignment]

    def _named(self, real: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def called(path: Any, *rest: Any, **options: Any) -> Any:
            self.meet(operation, path)
            return real(path, *rest, **options)

        return called

    def _described(self, real: Callable[..., Any], operation: str) -> Callable[..., Any]:
        def called(descriptor: Any, *rest: Any, **options: Any) -> Any:
            self.meet(operation, _path_of(descriptor))
            return real(descriptor, *rest, **options)

        return called

    def _os_open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        self.meet("create" if flags & os.O_CREAT else "open", path)
        descriptor: int = _REAL["open"](path, flags, *rest, **options)
        return descriptor

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """As the built-in one, on files whose reads and writes may fail."""
        if not isinstance(file, int):
            self.meet("open" if mode.strip("bt") in ("r", "r+") else "create", file)
        if not any(_path_of(file).startswith(trouble.under) for trouble in self.troubles):
            return _REAL["file"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind: Any = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
        stream = kind(raw)
        if "b" in mode:
            return stream
        return io.TextIOWrapper(stream, encoding, errors, newline, line_buffering=buffering == 1)

    def _statvfs(self, path: Any) -> os.statvfs_result:
        found: os.statvfs_result = _REAL["statvfs"](path)
        if self.is_full(_path_of(path)):
            return os.statvfs_result((*found[:3], 0, 0, *found[5:]))
        return found


NAMED = {
    "stat": "list", "lstat": "list", "scandir": "list", "listdir": "list", "rename": "rename", "replace": "rename",
    "link": "rename", "symlink": "rename", "unlink": "rename", "remove": "rename", "mkdir": "rename",
}  # fmt: skip
DESCRIPTORS = {"read": "read", "write": "write", "fsync": "sync", "copy_file_range": "read", "sendfile": "write"}
_REAL: dict[str, Callable[..., Any]] = {"open": os.open, "write": os.write, "file": io.open, "statvfs": os.statvfs}


class _Raw(io.FileIO):
    """A file whose reads and writes may fail."""

    storage: Storage
    n_read: ClassVar[Counter[str]] = Counter()

    def readinto(self, buffer: Any) -> int | None:
        met = self.storage.meet("read", _path_of(self.fileno()))
        view = memoryview(buffer).cast("B")
        if met == SHORT:
            return 0  # the end of the file, as it is said
        n = super().readinto(view)
        self.n_read[_path_of(self.fileno())] += n or 0
        if met == CHANGED and n:
            view[n // 2] ^= 1
        return n

    def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
        if size is None or size < 0:
            return self.readall()
        buffer = bytearray(size)
        n = self.readinto(buffer)
        return None if n is None else bytes(buffer[:n])

    def readall(self) -> bytes:
        parts = []
        while part := self.read(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def write(self, data: Any) -> int:
        self.storage.meet("write", _path_of(self.fileno()))
        return super().write(data)


def bytes_read() -> Counter[str]:
    """By this process, of each file under the folders of the troubles, whether or not there was any."""
    return Counter(_Raw.n_read)


def _path_of(file: Any) -> str:
    if isinstance(file, int):
        try:
            return str(Path(f"/proc/self/fd/{file}").readlink())
        except OSError:
            return ""
    return os.fsdecode(file) if isinstance(file, str | bytes | os.PathLike) else ""
