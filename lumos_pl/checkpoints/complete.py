"""Complete checkpoints: written aside, digested, then renamed, so that a name never stands for half a file.

step-00000100.ckpt.partial   being written
step-00000100.ckpt.sha256    its digest, in sha256sum's format (a sharded checkpoint is a folder: a line per file)
step-00000100.ckpt           complete: it exists and matches its digest
last.ckpt                    link to the newest complete one
"""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.atomic_file import PARTIAL, sync, write_atomically

DIGEST = ".sha256"
LAST = "last.ckpt"
DIGESTED_AT_ONCE = 8  # files of a sharded checkpoint: each rank reads all of them before it goes on


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
    for path in dict.fromkeys([*_files(partial), partial]):  # a folder's list of names too
        sync(path)
    if digested:
        if final.exists():
            remove(final)  # a damaged one of the same step
        write_atomically(final.with_name(final.name + DIGEST), digests or _digest_lines(partial, final.name))
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
