"""What a run does in its folder, tried there before the first step: some file systems lack some of it.

Without a lock two runs would write at once, without a rename or a forced write a checkpoint could be half a file; such
a folder is refused. Without symbolic links there is no `last.ckpt`, without a forced list of names a power cut may take
back the last checkpoint: both are said, and done without.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lumos_pl.errors import ConfigError, LumosError, TemporaryError
from lumos_pl.machinery.atomic_file import sync
from lumos_pl.machinery.own_files import append, partial_of, rename_new
from lumos_pl.machinery.retrying import passes

PROBE = "probe"  # of which the names are made
_ELSEWHERE = "give a run.dir on another disk"
_FIXES = {
    errno.EROFS: f"mount it for writing, or {_ELSEWHERE}",
    errno.EACCES: f"see that you may write there, or {_ELSEWHERE}",
    errno.ENOSPC: f"free some space, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some of your quota, or {_ELSEWHERE}",
}
_CANNOT = f"{_ELSEWHERE}; checkpoint.upload=URL keeps its checkpoints in an object store"


def probe(folder: Path) -> list[str]:
    """Try all that a run does in its folder; nothing is left there.

    Returns:
        what this file system lacks, in words, and a run does without.
    Raises:
        TemporaryError: it fails for now.
        ConfigError: it lacks what a run needs, is full, or may not be written; the operation and the way out.
    """
    one, other, link, inner = (partial_of(folder / PROBE) for _ in range(4))
    lacking = []
    try:
        with _needed("write a file", folder):
            one.write_bytes(b"a line\n")
        with _needed("force a file to the disk", folder):
            sync(one)
        with _needed("append to a file", folder):
            append(one, b"another\n")
        with _needed("rename a file", folder):
            rename_new(one, other)
        with _needed("replace a file", folder):
            one.touch(exist_ok=False)
            one.replace(other)
        with _needed("rename a folder", folder):
            inner.mkdir()
            rename_new(inner, one)
            one.rmdir()
        try:
            link.symlink_to(other.name)
        except OSError as error:
            lacking.append(f"no symbolic links ({error.strerror}): there will be no last.ckpt")
        with _needed("force a folder's names to the disk", folder):
            if not sync(folder):
                lacking.append(
                    "the names of files cannot be forced to the disk: after a power cut the last may be gone"
                )
        with _needed("remove a file", folder):
            other.unlink()
    finally:
        for path in one, other, link:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for path in one, inner:
            with suppress(OSError):
                path.rmdir()
    return lacking


@contextmanager
def _needed(operation: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind: type[LumosError] = TemporaryError if passes(error) else ConfigError
        raise kind(
            "the run's folder does not do what a run needs",
            file=folder,
            where=operation,
            got=error.strerror or str(error),
            fix="start the same command again" if passes(error) else _FIXES.get(error.errno or 0, _CANNOT),
        ) from error
