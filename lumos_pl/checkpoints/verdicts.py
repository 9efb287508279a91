"""What this process knows of checkpoints that the ranks of its run have looked through, each a part, see together.py.

It holds for files that are as they were then: any other is looked through anew, by whoever asks.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from lumos_pl.checkpoints.digests import check_digest, damaged

Signature = tuple[tuple[str, int, int, int], ...]  # of each file its name, inode, size and time


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        damage: what a part of it has instead of what its digest says; None: it is as it was written.
        looked_through: whether what lies in each file is what the metadata say, too; always known of a single file.
    """

    damage: str | None
    looked_through: bool


_KNOWN: dict[Path, tuple[Signature, Verdict]] = {}


def signature(checkpoint: Path) -> Signature | None:
    """What changes when a checkpoint does; None: it is not made of regular files, or gone."""
    try:
        is_folder = stat.S_ISDIR(checkpoint.lstat().st_mode)
        found = [(file.name, file.lstat()) for file in (sorted(checkpoint.iterdir()) if is_folder else [checkpoint])]
    except OSError:
        return None
    if not all(stat.S_ISREG(status.st_mode) for _, status in found):
        return None
    return tuple((name * is_folder, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)


def remember(checkpoint: Path, verdict: Verdict, when: Signature) -> None:
    """Keep what was found in a checkpoint.

    Args:
        when: its signature before it was looked through.
    """
    _KNOWN[checkpoint.resolve()] = when, verdict


def verdict_on(checkpoint: Path) -> Verdict | None:
    """What is known of a checkpoint; None: nothing, or it has changed since."""
    checkpoint = checkpoint.resolve()
    when, verdict = _KNOWN.get(checkpoint, ((), None))
    return verdict if verdict is not None and signature(checkpoint) == when else None


def check_whole(checkpoint: Path) -> None:
    """Raise CheckpointError unless a checkpoint is what was written: as all ranks know, or by reading all of it."""
    verdict = verdict_on(checkpoint)
    if verdict is None:
        check_digest(checkpoint)
    elif verdict.damage is not None:
        raise damaged(checkpoint, verdict.damage)
