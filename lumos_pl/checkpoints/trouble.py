"""What a checkpoint's write may fail of without anybody's mistake: the storage, which worked when the run began.

So whatever it says against a write may pass, a full disk or quota too, and is worth another attempt.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from lumos_pl.errors import LumosError, TemporaryError, causes
from lumos_pl.machinery.retrying import RetryConfig, is_full, passes, retried

T = TypeVar("T")
MIB = 1 << 20
ALL_KEPT = "the earlier checkpoints are as they were"


def of_storage(error: BaseException) -> bool:
    """Whether an error is the storage's, or that of every rank which failed is; another rank's end is not."""
    if (of_ranks := _of_ranks(error)) is not None:  # without any, it does not say
        return all(map(of_storage, of_ranks))
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
    return _read(work, config, file, passing=passes)


def read_together(work: Callable[[], T], config: RetryConfig, file: Path) -> T:
    """As `read_again`, of what several ranks do together: tried again where all of them learned that one has failed."""

    def passing(error: BaseException) -> bool:
        of_ranks = _of_ranks(error)
        return bool(of_ranks) and all(map(passes, of_ranks or ()))

    return _read(work, config, file, passing=passing)


def _read(work: Callable[[], T], config: RetryConfig, file: Path, *, passing: Callable[[BaseException], bool]) -> T:
    try:
        return retried(work, config, f"read {file}", passing=passing)
    except BaseException as error:
        is_failure = isinstance(error, Exception) or _of_ranks(error) is not None
        if not (is_failure and (passing(error) or passes(error))):
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
    if any(isinstance(one, OSError) and one.errno == errno.EFBIG for one in _all_of(error)):
        return "raise `ulimit -f`, or give a run.dir on a file system that takes files of this size"
    no_room = any(isinstance(one, TemporaryError) for one in _all_of(error))  # as `check_space` found before
    return (
        "free some space" if no_room or any(map(is_full, _all_of(error))) else "see that the folder can be written to"
    )


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
        for own in _of_ranks(one) or ():
            yield from causes(own)


def _of_ranks(error: BaseException) -> list[BaseException] | None:
    """What failed on some ranks, of torch's CheckpointException, which is no Exception; None: it is another error.

    Whoever raises one has loaded torch; who only looks for checkpoints need not.
    """
    api = sys.modules.get("torch.distributed.checkpoint.api")
    if api is None or not isinstance(error, api.CheckpointException):
        return None
    return [own for own, _ in error.failures.values()]
