"""What a checkpoint's write may fail of without anybody's mistake: the storage, which worked when the run began.

So whatever it says against a write may pass, a full disk or quota too, and is worth another attempt.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.errors import LumosError, TemporaryError, causes
from lumos_pl.machinery.retrying import RetryConfig, passes, retried

T = TypeVar("T")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MIB = 1 << 20
ALL_KEPT = "the earlier checkpoints are as they were"


def of_storage(error: BaseException) -> bool:
    """Whether an error is the storage's, or that of every rank which failed is; another rank's end is not."""
    if isinstance(error, CheckpointException):  # no Exception, and of some ranks; without any, it does not say
        return all(of_storage(own) for own, _ in error.failures.values())
    if isinstance(error, OSError | TemporaryError):
        return True
    if isinstance(error, LumosError):
        return any(isinstance(cause, OSError) for cause in causes(error))
    # torch's writer of archives, which tells of the system's error as an enforcement of its own
    return isinstance(error, RuntimeError) and "inline_container" in str(error)


def write_again(work: Callable[[], T], config: RetryConfig, what: str) -> T:
    """What `work` returns, tried again while the storage fails it."""
    return retried(work, config, what, passing=of_storage)


def read_again(work: Callable[[], T], config: RetryConfig, file: Path) -> T:
    """What `work` reads of a checkpoint, tried again while it fails in a way that passes.

    Raises:
        TemporaryError: so it does for too long; that says nothing about the checkpoint.
    """
    try:
        return retried(work, config, f"read {file}")
    except Exception as error:
        if not passes(error):
            raise
        fix = "see that its storage answers, then run the same command again"
        raise TemporaryError("checkpoint cannot be read", file=file, got=in_words(error), fix=fix) from error


def in_words(error: BaseException) -> str:
    """What the system, or who looked before it, says in an error: without its file, which is told anyway."""
    found = next((one for one in _all_of(error) if isinstance(one, OSError) and one.strerror), error)
    if isinstance(found, OSError) and found.strerror:
        said = found.strerror
    elif isinstance(found, LumosError):
        said = f"{found.what}: {found.got}, expected {found.expected}" if found.expected else found.what
    else:
        said = str(found)
    return " ".join(said.split())[:300] or type(found).__name__


def fix_of(error: BaseException) -> str:
    """What a person can do about a write that failed."""
    no_room = any(isinstance(one, TemporaryError) for one in _all_of(error))  # as `check_space` found before
    is_full = no_room or any(isinstance(one, OSError) and one.errno in FULL for one in _all_of(error))
    return "free some space" if is_full else "see that the folder can be written to"


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise TemporaryError unless so much can be written to `folder`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise TemporaryError(
            "too little space for a checkpoint",
            file=folder,
            got=f"{free / MIB:.0f} MiB",
            expected=f"{n_bytes / MIB:.0f} MiB",
            fix=f"{ALL_KEPT}: free some space, then run the same command again",
        )


def _all_of(error: BaseException) -> Iterator[BaseException]:
    for one in causes(error):
        yield one
        if isinstance(one, CheckpointException):
            for own, _ in one.failures.values():
                yield from causes(own)
