"""Complete checkpoints: written aside, digested, then renamed, so that a name never stands for half a file.

step-00000100.ckpt.partial   being written
step-00000100.ckpt.sha256    its digest, in sha256sum's format (a sharded checkpoint is a folder: a line per file)
step-00000100.ckpt           complete: it exists and matches its digest
last.ckpt                    link to the newest complete one
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lumos_pl.checkpoints.digests import DIGEST, check_digest, files_of, lines_of
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.atomic_file import PARTIAL, sync, write_atomically

LAST = "last.ckpt"


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """The step in a `checkpoint_name`."""
    return int(checkpoint.stem.removeprefix("step-"))


def complete(partial: Path, final: Path, digests: str | None = None) -> None:
    """Turn a written checkpoint, file or folder, into a complete one under its final name, and the run's last.

    Args:
        digests: `digest_lines` of its files, if they are known already.
    """
    place(partial, final, digested=True, digests=digests)
    link_atomically(final.with_name(LAST), final.name)


def place(partial: Path, final: Path, *, digested: bool, digests: str | None = None) -> None:
    """Give what was written, file or folder, its final name once all of it is on the disk."""
    for path in dict.fromkeys([*files_of(partial), partial]):  # a folder's list of names too
        sync(path)
    if digested:
        if final.exists():
            remove(final)  # a damaged one of the same step
        write_atomically(final.with_name(final.name + DIGEST), digests or lines_of(partial, final.name))
    partial.replace(final)
    sync(final.parent)


def link_atomically(link: Path, target: str) -> None:
    """Point a link at a name beside it; after any crash it points at the old or the new one."""
    partial = link.with_name(link.name + PARTIAL)
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)
    sync(link.parent)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; the name goes first, so that no damaged one is left under it."""
    if checkpoint.is_dir():
        aside = checkpoint.with_name(checkpoint.name + ".removed" + PARTIAL)
        checkpoint.replace(aside)
        shutil.rmtree(aside)
    else:
        checkpoint.unlink(missing_ok=True)
    checkpoint.with_name(checkpoint.name + DIGEST).unlink(missing_ok=True)


def kept_checkpoints(folder: Path) -> list[Path]:
    """Every step's checkpoint under its final name, oldest first."""
    return sorted(folder.glob("step-*.ckpt"))


def newest_complete(folder: Path) -> tuple[Path, list[str]]:
    """The newest complete checkpoint, and a line for each newer one passed over."""
    passed_over = []
    for checkpoint in reversed(kept_checkpoints(folder)):
        try:
            check_digest(checkpoint)
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return checkpoint, passed_over
    raise CheckpointError(
        "no complete checkpoint", file=folder, got="; ".join(passed_over) or "none", fix="start the run anew"
    )


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save left behind."""
    for path in folder.glob("*" + PARTIAL):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for digest in folder.glob("step-*" + DIGEST):
        if not digest.with_suffix("").exists():
            digest.unlink()
