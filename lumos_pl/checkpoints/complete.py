"""Complete checkpoints: written aside, digested, then renamed, so that a name never stands for half a file.

.step-00000100.ckpt.*.partial   being written
step-00000100.ckpt.sha256       its digest, in sha256sum's format (a sharded checkpoint is a folder: a line per file)
step-00000100.ckpt              complete: it exists and matches its digest
last.ckpt                       link to the newest complete one

Nothing else is a checkpoint of the run, whatever it is called; whose a digest is, its folder's record says.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

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

DIGEST = ".sha256"
LAST = "last.ckpt"
DIGESTED_AT_ONCE = 8  # files of a sharded checkpoint: each rank reads all of them before it goes on

_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})\.ckpt")

Signature = tuple[tuple[str, int, int, int], ...]  # of each file its name, inode, size and time


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """The step in a `checkpoint_name`.

    Raises:
        ValueError: it is another name.
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"not the name of a step's checkpoint: {checkpoint.name}")
    return int(match[1])


def complete(partial: Path, final: Path, digests: str | None = None) -> None:
    """Turn a written checkpoint, file or folder, into a complete one under its final name, and the run's last.

    Args:
        digests: `digest_lines` of its files, if they are known already.
    """
    place(partial, final, digested=True, digests=digests)
    link_atomically(final.with_name(LAST), final.name)


def place(partial: Path, final: Path, *, digested: bool, digests: str | None = None) -> None:
    """Give what was written, file or folder, its final name once all of it is on the disk.

    A checkpoint that was written here, a damaged one for example, is replaced; what else has the name is kept aside.
    """
    for path in dict.fromkeys([*_files(partial), partial]):  # a folder's list of names too
        sync(path)
    replaced = signature(final) if digested and was_written_here(final) else None
    if digested:
        if replaced is None and os.path.lexists(final):
            keep_aside(final)  # before a digest beside it says that it was written here
        write_atomically(digest_file(final), digests or _digest_lines(partial, final.name))
    put(partial, final, own=lambda found: replaced is not None and signature(found) == replaced, remove=_delete)
    sync(final.parent)


def link_atomically(link: Path, target: str) -> None:
    """Point a link at a name beside it; after any crash it points at the old or the new one.

    Only a link to a step's checkpoint is replaced: there is nothing in it that is not in its name.
    """
    partial = partial_of(link)
    partial.symlink_to(target)
    try:
        put(partial, link, own=lambda found: found.is_symlink() and bool(_NAME.fullmatch(str(found.readlink()))))
    finally:
        partial.unlink(missing_ok=True)
    sync(link.parent)


def kept_checkpoints(folder: Path) -> list[Path]:
    """Every step's checkpoint under its final name, complete or damaged, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(filter(_is_checkpoint, folder.iterdir()), key=step_of)


def _is_checkpoint(path: Path) -> bool:
    """Whether this is a regular file with a step's name, or such a folder, which has a digest beside it."""
    if not _NAME.fullmatch(path.name):
        return False
    with suppress(OSError):
        mode = path.lstat().st_mode
        return stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and os.path.lexists(digest_file(path)))
    return False  # it has just gone


# -- whose they are --------------------------------------------------------------------------------


def digest_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + DIGEST)


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


def remove(checkpoint: Path, written: Signature | None = None) -> bool:
    """Delete a checkpoint if it is the run's own and unchanged; whether it was.

    The name goes first, so that no damaged one is left under it.

    Args:
        written: its signature, if this process knows that it was own and unchanged then.
    """
    written = written or unchanged(checkpoint)
    if written is None or signature(checkpoint) != written:
        return False
    aside = partial_of(checkpoint)
    rename_new(checkpoint, aside)
    if signature(aside) != written:  # changed at the last moment
        keep_aside(aside, name=checkpoint.name)
        return False
    _delete(aside)
    remove_own(digest_file(checkpoint))
    return True


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save left behind."""
    remove_partials(folder, of=lambda name: name == LAST or bool(_NAME.fullmatch(name.removesuffix(DIGEST))))
    for digest in folder.glob("*" + DIGEST):
        checkpoint = digest.with_suffix("")
        if _NAME.fullmatch(checkpoint.name) and not os.path.lexists(checkpoint):
            remove_own(digest)


def _delete(path: Path) -> None:
    """Delete a file, or a folder of regular files."""
    if not path.is_dir():
        path.unlink()
        return
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


# -- whether they are whole ------------------------------------------------------------------------


def has_digest(checkpoint: Path) -> bool:
    checkpoint = checkpoint.resolve()
    return checkpoint.with_name(checkpoint.name + DIGEST).exists()


def digest_lines(files: Iterable[Path], checkpoint: str) -> str:
    """What the digest says of some files of a folder that will be a checkpoint of this name."""
    return "".join(_digest_line(file, f"{checkpoint}/{file.name}") for file in files)


def check_digest(checkpoint: Path) -> None:
    """Raise CheckpointError unless the checkpoint is what was written."""
    checkpoint = checkpoint.resolve()
    digest = checkpoint.with_name(checkpoint.name + DIGEST)
    if not checkpoint.exists():
        raise CheckpointError("no such checkpoint", file=checkpoint)
    if not digest.exists():
        raise CheckpointError("no digest beside the checkpoint", file=checkpoint, expected=digest.name)
    expected = digest.read_text(errors="replace").splitlines()
    got = _digest_lines(checkpoint, checkpoint.name).splitlines()
    if got != expected:
        wrong = next((line.split("  ")[-1] for line in expected if line not in got), "a file too many")
        raise CheckpointError(
            "checkpoint is damaged",
            file=checkpoint,
            where=wrong,
            got="another sha256 than was written",
            fix="resume from an earlier checkpoint",
        )


def check_archive(file: Path) -> None:
    """Raise CheckpointError if a checkpoint file without a digest is not what torch wrote: by its own checksums.

    torch never compares them, so a flipped bit would load as a weight.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive may raise anything
        raise CheckpointError("checkpoint cannot be read", file=file, got=in_short(error)) from None
    if damaged is not None:
        raise CheckpointError("checkpoint is damaged", file=file, where=damaged, got="another crc32 than was written")


def digest_of(checkpoint: Path) -> str:
    """The sha256 that identifies a checkpoint: the file's, or that of a folder's list of digests.

    It is taken from the digest beside the checkpoint, if there is one; `check_digest` compares the two.
    """
    digest = checkpoint.with_name(checkpoint.name + DIGEST)
    return _single_digest(digest.read_text() if digest.exists() else _digest_lines(checkpoint, checkpoint.name))


def digest_of_files(files: Iterable[Path]) -> str:
    """The sha256 that identifies several files of one folder."""
    return _single_digest("".join(_digest_lines(file, file.name) for file in files))


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint file, or the description of a sharded one; nothing in it is executed.

    Raises:
        CheckpointError: it is damaged, or holds something other than tensors and plain values.
    """
    file = path / "meta.pt" if path.is_dir() else path
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=not path.is_dir())
    except FileNotFoundError:
        raise CheckpointError("no such checkpoint", file=path) from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "checkpoint refused", file=path, got=in_short(error), fix="load only checkpoints you trust"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError("checkpoint cannot be read", file=path, got=in_short(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError("not a checkpoint of this project", file=path, got=type(content).__name__)
    return content


def in_short(error: BaseException) -> str:
    """What a library's error says, on one line and without torch's advice to load the file unsafely."""
    line = " ".join(str(error).split())
    line = re.sub(r"^Weights only load failed\..*?(?=Trying to load|WeightsUnpickler error)", "", line)
    line = re.sub(r" (Check the documentation of torch\.load|Please use `torch\.serialization).*", "", line)
    return line[:200] or type(error).__name__


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _digest_lines(path: Path, name: str) -> str:
    if not path.is_dir():
        return _digest_line(path, name)
    files = _files(path)
    names = [f"{name}/{file.relative_to(path).as_posix()}" for file in files]
    with ThreadPoolExecutor(DIGESTED_AT_ONCE) as pool:
        return "".join(pool.map(_digest_line, files, names))


def _digest_line(file: Path, name: str) -> str:
    with file.open("rb") as stream:
        return f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n"


def _single_digest(lines: str) -> str:
    listed = lines.splitlines()
    return listed[0].split()[0] if len(listed) == 1 else hashlib.sha256(lines.encode()).hexdigest()
