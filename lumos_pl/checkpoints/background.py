"""Sharded checkpoints, written while the training goes on: it waits only until its state is copied."""

from __future__ import annotations

import io
import re
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from lumos_pl.checkpoints.digests import digest_lines
from lumos_pl.checkpoints.reading import PLAIN_VALUES
from lumos_pl.machinery.own_files import name_of
from lumos_pl.machinery.torch_versions import STAGER_SERVES_ONCE


class BackgroundWriter:
    """Copies the state to the host's memory, then writes and digests the copy in a thread.

    A thread and not a process, as `dcp.async_save` also offers: it ends with its rank, so that nothing goes on writing
    into a folder that a resumed run has cleared; and its own thread, because `async_save` has nothing to say when the
    files of the other ranks are digested too. Its exchanges have a process group of their own, which never meet those
    of the training.

    Args:
        timeout: how long a rank waits for the others.
    """

    def __init__(self, timeout: timedelta) -> None:
        self._stager = _stager()
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def start(self, sharded: dict[str, Any], plain: dict[str, Any], partial: Path) -> Future[str]:
        """Begin to write a checkpoint; the one before must be done, its copy is overwritten.

        Args:
            sharded: what `dcp.save` takes.
            plain: the rest, rank 0's.
            partial: the folder to write, as `partial_of` names it; the same on all ranks.
        Returns:
            the lines of the digest, on rank 0; the others' are empty.
        """
        content = io.BytesIO()
        torch.save(plain, content)
        copy = cast(dict[str, Any], self._stager.stage(sharded))
        if STAGER_SERVES_ONCE:
            self._stager = _stager()
        return self._thread.submit(self._write, copy, content.getvalue(), partial)

    def _write(self, sharded: dict[str, Any], plain: bytes, partial: Path) -> str:
        dcp.state_dict_saver.save(sharded, checkpoint_id=partial, process_group=self._group)
        rank, n_ranks = dist.get_rank(), dist.get_world_size()
        if rank == 0:
            (partial / PLAIN_VALUES).write_bytes(plain)
        own = [file for file in partial.iterdir() if _writer(file) == rank]
        gathered: list[Any] | None = [None] * n_ranks if rank == 0 else None
        dist.gather_object(digest_lines(own, name_of(partial) or partial.name), gathered, group=self._group)
        lines = "".join(gathered or []).splitlines(keepends=True)
        return "".join(sorted(lines, key=lambda line: line.split("  ", 1)[1]))  # by the files' names


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
