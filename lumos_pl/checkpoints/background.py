"""Sharded checkpoints, written while the training goes on: it waits only until its state is copied."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult

from lumos_pl.checkpoints.digests import digest_lines
from lumos_pl.checkpoints.reading import PLAIN_VALUES
from lumos_pl.checkpoints.trouble import in_words, of_storage, write_again
from lumos_pl.machinery.own_files import name_of, write_through
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.torch_versions import STAGER_SERVES_ONCE


@dataclass(frozen=True)
class _Part:
    """What a rank says of the files that it wrote.

    Args:
        sizes: bytes of each, by name.
        lines: of the digest.
        failure: the storage's, of a rank that has not all of it.
    """

    sizes: Mapping[str, int]
    lines: str
    failure: OSError | None = None


class BackgroundWriter:
    """Copies the state to the host's memory, then writes and digests the copy in a thread.

    A thread and not a process, as `dcp.async_save` also offers: it ends with its rank, so that nothing goes on writing
    into a folder that a resumed run has cleared; and its own thread, because `async_save` has nothing to say when the
    files of the other ranks are digested too. Its exchanges have a process group of their own, which never meet those
    of the training.

    A write that fails is tried again by its rank, while the others wait for it; each exchange takes place however the
    writes before it ended, so that no rank waits for one that gave up.

    Args:
        timeout: how long a rank waits for the others.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._stager = _stager()
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def start(
        self, sharded: dict[str, Any], plain: dict[str, Any], partial: Path, retry: RetryConfig | None = None
    ) -> Future[str | None]:
        """Begin to write a checkpoint; the one before must be done, its copy is overwritten.

        Args:
            sharded: what `dcp.save` takes.
            plain: the rest, rank 0's.
            partial: the folder to write, as `partial_of` names it; the same on all ranks.
            retry: how long each write may fail.
        Returns:
            the lines of the digest, on rank 0, once all files of all ranks are to be seen there, each of its size; on
            the others nothing.
        """
        content = io.BytesIO()
        torch.save(plain, content)
        copy = cast(dict[str, Any], self._stager.stage(sharded))
        if STAGER_SERVES_ONCE:
            self._stager = _stager()
        return self._thread.submit(self._write, copy, content.getvalue(), partial, retry or RetryConfig())

    def _write(self, sharded: dict[str, Any], plain: bytes, partial: Path, retry: RetryConfig) -> str | None:
        writer = _FolderWriter(partial, retry)
        dcp.state_dict_saver.save(sharded, storage_writer=writer, process_group=self._group)
        rank, n_ranks = dist.get_rank(), dist.get_world_size()
        parts: list[Any] | None = [None] * n_ranks if rank == 0 else None
        dist.gather_object(_own_part(partial, rank, plain, retry), parts, group=self._group)
        return None if parts is None else _together(parts, partial, writer.named, retry)


class _FolderWriter(FileSystemWriter):
    """Torch's, each of whose steps is tried again by the rank that it fails on.

    Attributes:
        named: the files in which the metadata say that something lies, on rank 0.
    """

    def __init__(self, folder: Path, retry: RetryConfig) -> None:
        super().__init__(folder)
        self.named: set[str] = set()
        self._folder, self._retry = folder, retry

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        prepare: Callable[[SavePlan], SavePlan] = super().prepare_local_plan
        return write_again(lambda: prepare(plan), self._retry, f"begin {self._folder}")

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        write = super().write_data  # all of a file anew: one that was not forced to the disk may have lost anything
        return write_again(lambda: write(plan, planner), self._retry, f"write {self._folder}")

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        finish = super().finish
        write_again(lambda: finish(metadata, results), self._retry, f"write the metadata of {self._folder}")
        self.named = {result.storage_data.relative_path for of_rank in results for result in of_rank}


def _own_part(partial: Path, rank: int, plain: bytes, retry: RetryConfig) -> _Part:
    """Write what is rank 0's beside the tensors, and digest what this rank wrote; the storage's failure is in it."""

    def write_plain() -> None:
        with (partial / PLAIN_VALUES).open("wb") as stream:
            write_through(stream, plain)

    def look() -> _Part:
        own = [file for file in partial.iterdir() if _writer(file) == rank]
        return _Part({file.name: file.stat().st_size for file in own}, digest_lines(own, name_of(partial) or ""))

    try:
        if rank == 0:
            write_again(write_plain, retry, f"write {partial / PLAIN_VALUES}")
        return write_again(look, retry, f"digest {partial}")
    except Exception as error:
        if not of_storage(error):
            raise
        return _Part({}, "", OSError(getattr(error, "errno", None) or errno.EIO, f"rank {rank}: {in_words(error)}"))


def _together(parts: Iterable[_Part], partial: Path, named: set[str], retry: RetryConfig) -> str:
    """The lines of all ranks, by the files' names, once this one sees all that they wrote.

    Raises:
        OSError: a rank failed, or this one sees another folder than it does.
    """
    sizes: dict[str, int] = {}
    lines: list[str] = []
    for part in parts:
        if part.failure is not None:
            raise part.failure
        sizes |= part.sizes
        lines += part.lines.splitlines(keepends=True)
    write_again(lambda: _see(partial, dict.fromkeys(named, None) | sizes), retry, f"look through {partial}")
    return "".join(sorted(lines, key=lambda line: line.split("  ", 1)[1]))


def _see(folder: Path, sizes: Mapping[str, int | None]) -> None:
    """Raise OSError unless there is each of some files, of its size, as this rank sees them.

    Args:
        sizes: None: of a file that no rank has told of.
    """
    wrong = [name for name, size in sorted(sizes.items()) if size is None or _size(folder / name) != size]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        what = f"{len(wrong)} of {len(sizes)} files are missing or not whole: {shown}; all nodes must share the folder"
        raise OSError(errno.ENOENT, what)


def _size(file: Path) -> int | None:
    """Bytes of a file; opened, because a network's file system answers from memory until then."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _stager() -> DefaultStager:
    """What copies the state into memory of the host, pinned where there is a GPU; most versions of torch keep that."""
    on_gpu = torch.cuda.is_available()
    options = StagingOptions(
        use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_gpu
    )
    return DefaultStager(options)


def _writer(file: Path) -> int:
    """The rank that wrote a file of a sharded checkpoint: __RANK_N.distcp; all others are rank 0's."""
    match = re.match(r"__(\d+)_", file.name)
    return int(match[1]) if match else 0
