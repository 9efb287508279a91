"""Complete checkpoints: written aside, digested, then renamed, so that a name never stands for half a file.

.step-00000100.ckpt.*.partial   being written
step-00000100.ckpt.sha256       its digest, in sha256sum's format (a sharded checkpoint is a folder: a line per file)
step-00000100.ckpt              complete: it exists and matches its digest
last.ckpt                       link to the newest complete one

Nothing else is a checkpoint of the run, whatever it is called; whose a digest is, its folder's record says.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from lumos_pl.checkpoints.digests import DIGEST, check_digest, digest_file, files_of, lines_of
from lumos_pl.checkpoints.trouble import in_words, read_again, write_again
from lumos_pl.checkpoints.verdicts import Signature, check_whole, signature
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.atomic_file import sync, write_atomically
from lumos_pl.machinery.own_files import (
    RECORD,
    is_own,
    keep_aside,
    note,
    partial_of,
    put,
    remove_own,
    remove_partials,
    rename_new,
)
from lumos_pl.machinery.retrying import RetryConfig

LAST = "last.ckpt"
WITHOUT_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # what systems say there

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})\.ckpt")

ONCE = RetryConfig(attempts=1)

T = TypeVar("T")
log = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}.ckpt"


def is_checkpoint_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name))


def step_of(checkpoint: Path) -> int:
    """The step in a `checkpoint_name`.

    Raises:
        ValueError: it is another name.
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"not the name of a step's checkpoint: {checkpoint.name}")
    return int(match[1])


def complete(partial: Path, final: Path, digests: str | None = None, *, retry: RetryConfig = ONCE) -> None:
    """Turn a written checkpoint, file or folder, into a complete one under its final name, and the run's last.

    A checkpoint that was written here, a damaged one for example, is replaced; what else has the name is kept aside.
    It is complete without the link to it, too: one that cannot be made is told in a line.

    Args:
        digests: `digest_lines` of its files, if they are known already.
        retry: how long each step of it may fail.
    """
    written = signature(partial)

    def again(work: Callable[[], T], name: str) -> T:
        return write_again(work, retry, f"{name} {final}")

    again(lambda: sync_all(partial), "force to the disk")
    lines = digests or again(lambda: lines_of(partial, final.name), "digest")
    again(lambda: _put(partial, final, lines, written), "complete")
    again(lambda: sync(final.parent), "complete")
    try:
        again(lambda: link_atomically(final.with_name(LAST), final.name), f"link {LAST} to")
    except OSError as error:
        log.warning("not linked: %s | %s | %s is complete", final.with_name(LAST), in_words(error), final.name)


def _put(partial: Path, final: Path, lines: str, written: Signature | None) -> None:
    """Write the digest, then give a written checkpoint its name; also after an attempt that failed anywhere."""
    if written is not None and signature(final) == written:
        return  # it has its name, and what it replaced goes with other leftovers
    replaced = signature(final) if was_written_here(final) else None
    if replaced is None and os.path.lexists(final):
        keep_aside(final)  # before a digest beside it says that it was written here
    write_atomically(digest_file(final), lines)
    put(partial, final, own=lambda found: replaced is not None and signature(found) == replaced, remove=_delete)


def sync_all(checkpoint: Path) -> None:
    """Force a file, or a folder with all in it, to the disk."""
    for path in dict.fromkeys([*files_of(checkpoint), checkpoint]):  # a folder's list of names too
        sync(path)


def link_atomically(link: Path, target: str) -> None:
    """Point a link at a name beside it; after any crash it points at the old or the new one.

    Only a link to a step's checkpoint is replaced: there is nothing in it that is not in its name. Where the file
    system has no links there is none, see `resolve_named`.
    """
    partial = partial_of(link)
    try:
        partial.symlink_to(target)
    except OSError as error:
        if error.errno in WITHOUT_LINKS:
            return
        raise
    try:
        put(partial, link, own=lambda found: found.is_symlink() and bool(_NAME.fullmatch(str(found.readlink()))))
    finally:
        partial.unlink(missing_ok=True)
    sync(link.parent)


def kept_checkpoints(folder: Path) -> list[Path]:
    """Every step's checkpoint under its final name, complete or damaged, oldest first."""
    return list(filter(is_checkpoint, with_steps_names(folder)))


def with_steps_names(folder: Path) -> list[Path]:
    """Whatever has the name of a step's checkpoint, a link for example, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Whether what has a step's name is a regular file, or a folder that has a digest beside it."""
    with suppress(OSError):
        mode = path.lstat().st_mode
        return stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and digest_file(path).is_file())
    return False  # it has just gone


# -- whose they are --------------------------------------------------------------------------------


def was_written_here(checkpoint: Path) -> bool:
    """Whether a checkpoint of this name was completed in its folder, and its digest is as it was then."""
    return is_own(digest_file(checkpoint))


def adopt(folder: Path) -> None:
    """Take the checkpoints of a folder of before there was a record for the run's own, as far as they have a digest."""
    if os.path.lexists(folder / RECORD):
        return
    for digest in map(digest_file, kept_checkpoints(folder)):
        if digest.is_file() and not digest.is_symlink():
            note(digest, hashlib.sha256(digest.read_bytes()).hexdigest())


def unchanged(checkpoint: Path) -> Signature | None:
    """The signature of a checkpoint that was written here, all of which is as it was then; None: it is another."""
    before = signature(checkpoint)
    if before is None or not was_written_here(checkpoint):
        return None
    try:
        check_digest(checkpoint)
    except (CheckpointError, OSError):
        return None
    return before if signature(checkpoint) == before else None


def remove(checkpoint: Path, written: Signature | None = None, *, retry: RetryConfig = ONCE) -> bool:
    """Delete a checkpoint if it is the run's own and unchanged; whether it was.

    The name goes first, so that no damaged one is left under it.

    Args:
        written: its signature, if this process knows that it was own and unchanged then.
        retry: how long each step of it may fail.
    """
    written = written or unchanged(checkpoint)
    if written is None or signature(checkpoint) != written:
        return False
    aside = partial_of(checkpoint)
    write_again(lambda: rename_new(checkpoint, aside), retry, f"remove {checkpoint}")
    if signature(aside) != written:  # changed at the last moment
        keep_aside(aside, name=checkpoint.name)
        return False
    write_again(lambda: _delete(aside), retry, f"remove {checkpoint}")
    write_again(lambda: remove_own(digest_file(checkpoint)), retry, f"remove the digest of {checkpoint}")
    return True


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save left behind."""
    remove_partials(folder, of=lambda name: name in (LAST, RECORD) or bool(_NAME.fullmatch(name.removesuffix(DIGEST))))
    for digest in folder.glob("*" + DIGEST):
        checkpoint = digest.with_suffix("")
        if _NAME.fullmatch(checkpoint.name) and not os.path.lexists(checkpoint):
            remove_own(digest)


def _delete(path: Path) -> None:
    """Delete a file, or a folder of regular files."""
    if not path.is_dir():
        path.unlink(missing_ok=True)  # an attempt before may have done so
        return
    for file in path.iterdir():
        file.unlink(missing_ok=True)
    path.rmdir()


# -- whether they are whole ------------------------------------------------------------------------


def newest_complete(folder: Path, *, retry: RetryConfig = RetryConfig()) -> tuple[Path, list[str]]:  # noqa: B008
    """The newest complete checkpoint, and a line for each newer one passed over.

    Raises:
        CheckpointError: there is none.
        TemporaryError: one cannot be read for longer than `retry` allows, which does not say that it is damaged.
    """
    passed_over = []
    for checkpoint in reversed(with_steps_names(folder)):
        if not is_checkpoint(checkpoint):
            passed_over.append(f"a link, or a folder without its digest | {checkpoint}")
            continue
        try:
            read_again(functools.partial(check_whole, checkpoint), retry, checkpoint)
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return checkpoint, passed_over
    raise CheckpointError(
        "no complete checkpoint", file=folder, got="; ".join(passed_over) or "none", fix="start the run anew"
    )
