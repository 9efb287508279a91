"""A checkpoint of a run that goes on is kept for as long as it is read, without asking the training."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lumos_pl.checkpoints.digests import digest_file, files_of

NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


@contextmanager
def hold(checkpoint: Path, aside: Path) -> Iterator[Path]:
    """The checkpoint under second names, hard links in a folder `aside`, which a rotation does not take away.

    Links cost no bytes until the first names are removed: then the disk has one checkpoint more until the block ends.
    A copy would cost all bytes each time. Where the file system has no links, or allows none to another's file, it is
    the checkpoint itself.

    Args:
        aside: a new folder on the checkpoint's disk; it is gone afterwards.
    Raises:
        FileNotFoundError: it has just been removed.
    """
    aside.mkdir()
    try:
        yield aside / checkpoint.name if _link(checkpoint, aside) else checkpoint
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _link(checkpoint: Path, aside: Path) -> bool:
    """Whether all of it has second names now; the digest first, for it is the last to be removed."""
    if checkpoint.is_dir():
        (aside / checkpoint.name).mkdir()
    try:
        for file in [digest_file(checkpoint), *files_of(checkpoint)]:
            os.link(file, aside / file.relative_to(checkpoint.parent))
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True
