"""Reads of data that may fail for a while: tried again, and never taken for damage.

fails in a way that passes          tried again as `data.retry` says; then a TemporaryError: storage, not data
is not there                        tried again too: a mount may be gone; then, beside its manifest, a missing shard
has another digest                  read again from the disk until two reads say the same: what a cache or a network
                                    garbled is whole there; from a store, until all attempts have failed
fails in another way, or twice      a DataError: damage, or something for a person
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_modules.shards.manifest import MANIFEST_FILE, damage_fix, missing_shard
from data_modules.shards.places import FEWEST_ATTEMPTS, Place, RemotePath, is_there
from data_modules.shards.sample_bytes import first_damage
from data_modules.shards.table import ShardEntry, ShardTable
from lumos_pl.errors import DataError, FileError, LumosError, TemporaryError, causes
from lumos_pl.machinery.regular_file import open_regular, size_of, unreadable
from lumos_pl.machinery.retrying import RetryConfig, passes, retried

T = TypeVar("T")

RETRY = RetryConfig()

_ABSENT = (FileNotFoundError, NotADirectoryError)


def read_patiently(
    work: Callable[[], T],
    file: Place,
    retry: RetryConfig = RETRY,
    *,
    was_there: bool = True,
    passing: Callable[[BaseException], bool] = lambda error: False,
) -> T:
    """What `work` reads of a file, tried again while it fails in a way that passes.

    Args:
        was_there: it is known to have been there, so that its absence may pass as well.
        passing: what else may.
    Raises:
        TemporaryError: the trouble lasted longer than the attempts.
        Exception: what does not pass, as `work` raised it; also the absence of the file after the last attempt.
    """

    def may_pass(error: BaseException) -> bool:
        return passes(error) or passing(error) or (was_there and is_absent(error))

    try:
        return retried(work, retry, f"read {file}", passing=may_pass)
    except Exception as error:
        if not (passes(error) or passing(error)):
            raise
        raise out_of_reach(file, error, retry) from error


def read_listed(work: Callable[[], T], file: Path, retry: RetryConfig = RETRY) -> T:
    """As `read_patiently`, of a file that a list names: it may be gone for a while with its whole folder."""

    def folder_is_gone(error: BaseException) -> bool:
        return is_absent(error) and not os.path.isdir(file.parent)  # noqa: PTH112 (Path.is_dir may raise EIO)

    return read_patiently(work, file, retry, was_there=False, passing=folder_is_gone)


def read_twice(work: Callable[[], T], file: Place, retry: RetryConfig, *, was_there: bool = False) -> T:
    """As `read_patiently`, of small files: where what they hold is damaged, they are read once more, or more often.

    What comes from a store may be garbled on its way several times.


    Raises:
        TemporaryError: also where a file is not there that was.
    """
    for _ in range(1 if isinstance(file, Path) else max(FEWEST_ATTEMPTS, retry.attempts) - 1):
        try:
            return read_patiently(work, file, retry, was_there=was_there)
        except DataError as error:
            if was_there and is_absent(error):
                raise out_of_reach(file, error, retry) from error
            if not is_damage(error) or is_absent(error):
                raise
    return read_patiently(work, file, retry, was_there=was_there)


def out_of_reach(file: Place, error: BaseException, retry: RetryConfig) -> TemporaryError:
    """The trouble of the storage that outlasted the attempts; `error` is the last one's."""
    found = next((one for one in causes(error) if isinstance(one, OSError) and one.errno), None)
    if found is not None:
        said = f"{errno.errorcode.get(found.errno or 0, found.errno)}, {found.strerror or found}"
    else:
        said = getattr(error, "got", None) or getattr(error, "what", None) or str(error)
    return TemporaryError(
        "the storage does not answer as it should",
        file=next((one.file for one in causes(error) if isinstance(one, LumosError) and one.file), file),
        got=f"{said}, {retry.attempts} times",
        fix="start again when it does; data.retry says how long a read is tried",
    )


def is_absent(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that there is no such file."""
    return any(isinstance(one, _ABSENT) for one in causes(error))


def is_damage(error: LumosError) -> bool:
    """Whether what was read is not what it should be; what could not be read at all is trouble of another kind."""
    if not isinstance(error, DataError) or isinstance(error, FileError):
        return False
    return not any(isinstance(one, OSError) and not isinstance(one, _ABSENT) for one in causes(error))


def reason(error: DataError) -> str:
    """A failure in a few words, without the file's path, which stands beside it."""
    return str(DataError(**error.parts | {"file": None, "fix": None}))


def forget_cached(descriptor: int) -> None:
    """Let the next read of an open file come from the disk, where the system can be asked for that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read_checked(
    path: Place, entry: ShardEntry, retry: RetryConfig = RETRY, *, was_there: bool = True
) -> tuple[bytes, DataError | None]:
    """The bytes of a shard, and what its size and its digest say against them, twice.

    Args:
        path: in a store, it comes from the cache of this machine; its attempts are more, as what is between garbles it.
        was_there: see `read_patiently`.
    Raises:
        DataError: it is missing beside its manifest, or cannot be read for a reason that lasts.
        TemporaryError: see `read_patiently`; or a store gave something else each time.
    """
    data, damage, said = b"", None, list[tuple[bytes, int]]()
    attempts = max(2 if isinstance(path, Path) else FEWEST_ATTEMPTS, retry.attempts)
    for attempt in range(attempts):
        try:
            data, n_bytes = read_patiently(
                partial(read_at_most, path, entry, anew=attempt > 0), path, retry, was_there=was_there
            )
        except DataError as error:
            if not is_absent(error):
                raise
            if not is_there(path.with_name(MANIFEST_FILE)):
                raise out_of_reach(path, error, retry) from error
            raise missing_shard(path) from error
        damage = _damage(path, entry, data, n_bytes)
        if damage is None:
            break
        said.append((hashlib.sha256(data).digest(), n_bytes))
        if isinstance(path, Path) and said.count(said[-1]) > 1:
            break  # two reads that differ say nothing of what is damaged
    if damage is not None and isinstance(path, RemotePath) and len(set(said)) == len(said):
        raise out_of_reach(path, damage, replace(retry, attempts=attempts))
    return data, damage


def bring_shard(path: Place, table: ShardTable, index: int) -> None:
    """Have a shard come into the cache of this machine; what goes wrong is found again by who reads it.

    Raises:
        Exception: whatever goes wrong.
    """
    if isinstance(path, RemotePath) and path.access.cache is not None:
        path.brought(table.digests[index].decode(), int(table.n_bytes[index])).close()


def read_at_most(path: Place, entry: ShardEntry, *, anew: bool = False) -> tuple[bytes, int]:
    """The beginning of a shard's file, and how many bytes it has in all.

    Args:
        anew: what the system, or the cache of this machine, holds of it is not to be taken.
    """
    if isinstance(path, RemotePath):
        return path.read_checked_once(entry.sha256, entry.n_bytes, anew=anew)
    with open_regular(path, at_most=None) as file:
        try:
            if anew:
                forget_cached(file.fileno())
            return file.read(min(entry.n_bytes, size_of(file))), size_of(file)
        except OSError as error:
            raise unreadable(path, error) from error


def _damage(path: Place, entry: ShardEntry, data: bytes, n_bytes: int) -> DataError | None:
    if n_bytes != entry.n_bytes:
        what, got, expected = "shard of another size", f"{n_bytes} bytes", f"{entry.n_bytes} bytes"
    elif (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:
        what, got, expected = "shard with other content", f"sha256 {digest}", entry.sha256
    else:
        return None
    where, fix = first_damage(data, entry), damage_fix(path.parent)
    return DataError(what, file=path, where=where, got=got, expected=expected, fix=fix)
