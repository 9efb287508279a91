"""Digests beside checkpoints, in sha256sum's format: a line of a file, or of each file of a folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.regular_file import open_regular, read_regular

DIGEST = ".sha256"
DIGESTED_AT_ONCE = 8  # files of a sharded checkpoint: each rank reads all of them before it goes on
_MOST_BYTES = 16 << 20  # of a digest: a hundred thousand files' lines
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def digest_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + DIGEST)


def has_digest(checkpoint: Path) -> bool:
    return digest_file(checkpoint.resolve()).exists()


def check_digest(checkpoint: Path) -> None:
    """Raise CheckpointError unless the checkpoint is what was written."""
    checkpoint = checkpoint.resolve()
    digest = digest_file(checkpoint)
    if not checkpoint.exists():
        raise CheckpointError("no such checkpoint", file=checkpoint)
    if not digest.exists():
        raise CheckpointError("no digest beside the checkpoint", file=checkpoint, expected=digest.name)
    expected = _read_lines(digest)
    got = lines_of(checkpoint, checkpoint.name).splitlines()
    if got != expected:
        wrong = next((line.split("  ")[-1] for line in expected if line not in got), "a file too many")
        raise damaged(checkpoint, wrong)


def damaged(checkpoint: Path, where: str) -> CheckpointError:
    got, fix = "another sha256 than was written", "resume from an earlier checkpoint"
    return CheckpointError("checkpoint is damaged", file=checkpoint.resolve(), where=where, got=got, fix=fix)


def digests_written(checkpoint: Path) -> dict[str, str]:
    """The sha256 that each file of a checkpoint had when it was written, by the names in the digest beside it.

    Raises:
        CheckpointError: it is no digest of this checkpoint.
    """
    digest = digest_file(checkpoint)
    content = read_regular(digest, at_most=_MOST_BYTES, error=CheckpointError)
    files = digested_files(content, checkpoint.name, digest)
    return {file: line[:64] for file, line in zip(files, _lines(content, digest), strict=True)}


def digest_of_file(file: Path) -> str:
    """The sha256 of a regular file, by reading all of it."""
    with open_regular(file, at_most=None, error=CheckpointError) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_lines(files: Iterable[Path], checkpoint: str) -> str:
    """What the digest says of some files of a folder that will be a checkpoint of this name."""
    return "".join(_line(file, f"{checkpoint}/{file.name}") for file in files)


def digest_of(checkpoint: Path) -> str:
    """The sha256 that identifies a checkpoint: the file's, or that of a folder's list of digests.

    It is taken from the digest beside the checkpoint, if there is one; `check_digest` compares the two.
    """
    digest = digest_file(checkpoint)
    return _single(_read_lines(digest) if digest.exists() else lines_of(checkpoint, checkpoint.name).splitlines())


def digest_of_files(files: Iterable[Path]) -> str:
    """The sha256 that identifies several files of one folder."""
    return _single([line for file in files for line in lines_of(file, file.name).splitlines()])


def lines_of(path: Path, name: str) -> str:
    """The digest of a file or folder that is, or will be, a checkpoint of this name."""
    if not path.is_dir():
        return _line(path, name)
    files = files_of(path)
    names = [f"{name}/{file.relative_to(path).as_posix()}" for file in files]
    with ThreadPoolExecutor(DIGESTED_AT_ONCE) as pool:
        return "".join(pool.map(_line, files, names))


def files_of(path: Path) -> list[Path]:
    """The file that a checkpoint is, or all files of the folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def digested_files(digest: bytes, checkpoint: str, file: str | Path | None = None) -> list[str]:
    """The files that the digest of a checkpoint of this name is of: itself, or those of the folder that it is.

    Args:
        file: where the digest is, for messages.
    Raises:
        CheckpointError: it names another file.
    """
    names = [line.split("  ", 1)[1] for line in _lines(digest, file)]
    for name in names:
        folder, _, part = name.rpartition("/")
        inside = folder == checkpoint and part not in ("", ".", "..")
        if not (inside or names == [checkpoint]) or "\0" in name:
            got = ascii(name[:100])
            raise CheckpointError("not the digest of this checkpoint", file=file, got=got, expected=checkpoint)
    return names


def _read_lines(digest: Path) -> list[str]:
    return _lines(read_regular(digest, at_most=_MOST_BYTES, error=CheckpointError), digest)


def _lines(content: bytes, digest: str | Path | None) -> list[str]:
    lines = content.decode(errors="replace").splitlines()
    wrong = next((line for line in lines if not _LINE.fullmatch(line)), None)
    if wrong is not None or not lines:
        got = "nothing" if wrong is None else repr(wrong[:100])
        raise CheckpointError("not a digest", file=digest, got=got, expected="lines of a sha256 and a name")
    return lines


def _line(file: Path, name: str) -> str:
    return f"{digest_of_file(file)}  {name}\n"


def _single(lines: list[str]) -> str:
    text = "".join(f"{line}\n" for line in lines)
    return lines[0].split()[0] if len(lines) == 1 else hashlib.sha256(text.encode()).hexdigest()
