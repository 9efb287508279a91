"""Ranks that look through a checkpoint together, and that save one of which a part fails: all come to one verdict."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from lumos_pl.checkpoints import background, digests, sharded
from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.complete import complete, newest_complete
from lumos_pl.checkpoints.sharded import read_metadata
from lumos_pl.checkpoints.together import by_bytes, look_through_together
from lumos_pl.checkpoints.trouble import read_together
from lumos_pl.errors import TemporaryError
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.retrying import RetryConfig
from tests.processes import on_ranks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a fork server")
RETRY = RetryConfig(attempts=2, wait_s=0)
PATIENCE = timedelta(seconds=60)


def state() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensors = {f"net.{i}": distribute_tensor(torch.full((64, 16), float(i)), mesh, [Shard(0)]) for i in range(5)}
    return {"state_dict": tensors}


def common(path: Path) -> Path:
    """The same new name on all ranks."""
    drawn = [partial_of(path)]
    dist.broadcast_object_list(drawn)
    return drawn[0]


def save(final: Path) -> str | None:
    """What the write failed of, if it did; complete else."""
    partial = common(final)
    writing = BackgroundWriter(PATIENCE).start(state(), {"global_step": 1}, partial, RETRY)
    failure = writing.exception()
    if failure is not None:
        return str(failure)
    if dist.get_rank() == 0:
        complete(partial, final, writing.result())
    dist.barrier()
    return None


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Bytes that this rank reads of files, by the files' names."""
    read: Counter[str] = Counter()

    class Counted(io.BufferedReader):
        def read(self, *size: Any) -> bytes:
            data = super().read(*size)
            read[Path(str(self.raw.name)).name] += len(data)
            return data

        def readinto(self, buffer: Any) -> int:
            n_bytes = super().readinto(buffer)
            read[Path(str(self.raw.name)).name] += n_bytes
            return n_bytes

    def opened(file: Path, **_: Any) -> io.BufferedReader:
        return Counted(io.FileIO(file))

    with patch.object(digests, "open_regular", opened), patch.object(sharded, "open_regular", opened):
        yield read


def of_all_ranks(value: Any) -> list[Any]:
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, value)
    return ranks


def read_by_ranks(rank: int, world: int, folder: Path, kind: str) -> Any:
    """Bytes that each rank reads to find the newest whole checkpoint; what it is; those read by asking again."""
    checkpoints = folder / "checkpoints"
    for step in 10, 20:
        final = checkpoints / f"step-{step:08d}.ckpt"
        if kind == "sharded":
            assert save(final) is None
        elif rank == 0:
            partial = partial_of(final)
            torch.save({"weights": torch.zeros(9000)}, partial)
            complete(partial, final)
    dist.barrier()
    with counting() as read:
        look_through_together(folder, retry=RETRY, timeout=PATIENCE)
        once = dict(read)
        newest, passed_over = newest_complete(checkpoints)
        if kind == "sharded":
            read_metadata(newest)
    return of_all_ranks(once), newest.name, passed_over, of_all_ranks(dict(read) == once)


@pytest.mark.seconds
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["sharded", "file"])
def test_each_byte_of_a_checkpoint_is_read_once_by_one_rank(tmp_path: Path, world: int, kind: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    by_rank, newest, passed_over, nothing_more = on_ranks(world, read_by_ranks, tmp_path, tmp_path, kind)
    checkpoint = tmp_path / "checkpoints" / "step-00000020.ckpt"
    assert newest == checkpoint.name and passed_over == [] and nothing_more == [True] * world
    files = checkpoint.iterdir() if kind == "sharded" else [checkpoint]
    assert sum(map(Counter, by_rank), Counter()) == Counter({file.name: file.stat().st_size for file in files})
    assert [bool(read) for read in by_rank] == [True] + [kind == "sharded"] * (world - 1)


def test_files_are_dealt_out_to_their_writers_and_by_their_bytes() -> None:
    sizes = {"a/__0_0.distcp": 5, "a/__1_0.distcp": 6, "a/__2_0.distcp": 3, "a/__3_0.distcp": 2, "a/.metadata": 1}
    assert [sum(map(sizes.__getitem__, part)) for part in by_bytes(sizes, 5)] == [6, 6, 3, 2, 0]
    assert by_bytes(sizes, 2) == [
        ["a/__0_0.distcp", "a/__2_0.distcp", "a/.metadata"],
        ["a/__1_0.distcp", "a/__3_0.distcp"],
    ]


def verdicts(rank: int, world: int, folder: Path) -> Any:
    """Which checkpoint each rank takes for the newest whole one, and how many lines tell of others."""
    checkpoints, taken = folder / "checkpoints", []
    for step in 10, 20, 30:
        assert save(checkpoints / f"step-{step:08d}.ckpt") is None
    damages = {
        "another byte": lambda file: file.write_bytes(b"!" + file.read_bytes()[1:]),
        "half of it": lambda file: file.write_bytes(file.read_bytes()[:1000]),
        "gone": Path.unlink,
        "too many": lambda file: file.with_name("__9_0.distcp").write_bytes(b"x"),
    }
    for damage in damages.values():
        for name in "__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt":
            if rank == 0:
                shutil.copytree(checkpoints / "step-00000030.ckpt", folder / "kept")
                damage(checkpoints / "step-00000030.ckpt" / name)
            dist.barrier()
            look_through_together(folder, retry=RETRY, timeout=PATIENCE)
            with counting() as read:
                newest, passed_over = newest_complete(checkpoints)
            taken.append((newest.name, len(passed_over), sum(read.values())))
            dist.barrier()
            if rank == 0:
                shutil.rmtree(checkpoints / "step-00000030.ckpt")
                (folder / "kept").rename(checkpoints / "step-00000030.ckpt")
            dist.barrier()
    return of_all_ranks(taken)


@pytest.mark.seconds
def test_what_is_damaged_in_one_ranks_part_is_damaged_for_all(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for taken in on_ranks(2, verdicts, tmp_path, tmp_path):
        assert taken == [("step-00000020.ckpt", 1, 0)] * 16


def changed_since(rank: int, world: int, folder: Path) -> Any:
    checkpoints = folder / "checkpoints"
    for step in 10, 20:
        assert save(checkpoints / f"step-{step:08d}.ckpt") is None
    look_through_together(folder, retry=RETRY, timeout=PATIENCE)
    part = checkpoints / "step-00000020.ckpt" / "__1_0.distcp"
    dist.barrier()
    if rank == 0:
        part.write_bytes(b"!" + part.read_bytes()[1:])
    dist.barrier()
    return of_all_ranks(newest_complete(checkpoints)[0].name)


def test_what_has_changed_since_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert on_ranks(2, changed_since, tmp_path, tmp_path) == ["step-00000010.ckpt"] * 2


def trouble_on_a_rank(rank: int, world: int, folder: Path) -> Any:
    final = folder / "checkpoints" / "step-00000010.ckpt"
    assert save(final) is None
    with patch.object(hashlib, "sha256", side_effect=OSError(errno.EIO, "I/O")) if rank == 1 else counting():
        try:
            look_through_together(folder, retry=RETRY, timeout=PATIENCE)
        except TemporaryError as error:
            return of_all_ranks(str(error.got))
    return of_all_ranks("")


def test_a_rank_that_cannot_read_its_part_now_ends_all_for_a_while(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert on_ranks(2, trouble_on_a_rank, tmp_path, tmp_path) == ["I/O"] * 2


def read_with_a_failure(rank: int, world: int, folder: Path, times: int) -> Any:
    """What DCP reads while one rank fails at it so many times."""
    final = folder / "step-00000010.ckpt"
    assert save(final) is None
    left, read_data = [times if rank == 1 else 0], dcp.FileSystemReader.read_data

    def tried(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return read_data(*arguments)

    content = {"state_dict": {name: tensor.zero_() for name, tensor in state()["state_dict"].items()}}
    with patch.object(dcp.FileSystemReader, "read_data", tried):
        try:
            read_together(lambda: dcp.state_dict_loader.load(content, checkpoint_id=final), RETRY, final)
        except TemporaryError as error:
            return of_all_ranks(error.got)
    return of_all_ranks(float(content["state_dict"]["net.4"].to_local().mean()))


@pytest.mark.seconds
def test_what_one_rank_cannot_read_now_all_read_again(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert on_ranks(2, read_with_a_failure, tmp_path, tmp_path, 1) == [4.0, 4.0]
    assert on_ranks(2, read_with_a_failure, tmp_path, tmp_path / "b", 2) == ["Input/output error"] * 2


# -- saves of which a part fails -------------------------------------------------------------------


def failing_save(rank: int, world: int, folder: Path, place: str, of: int, times: int) -> Any:
    """What each rank learns of a save in which one rank fails so many times at a place."""
    left = [times if rank == of else 0]
    targets = {"fsync": (os, "fsync"), "digest": (background, "digest_lines")}
    module, name = targets[place]
    work = getattr(module, name)

    def tried(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return work(*arguments, **named)

    with patch.object(module, name, tried):
        partial = common(folder / "step-00000010.ckpt")
        writing = BackgroundWriter(PATIENCE).start(state(), {"global_step": 1}, partial, RETRY)
        failure = writing.exception()
    again = save(folder / "step-00000020.ckpt")  # all are ready for another one
    return of_all_ranks((type(failure).__name__, again))


@pytest.mark.seconds
@pytest.mark.parametrize(("place", "of"), [("fsync", 0), ("fsync", 1), ("digest", 0), ("digest", 1)])
def test_a_rank_that_fails_once_writes_again_and_one_that_fails_on_fails_the_save(
    tmp_path: Path, place: str, of: int
) -> None:
    assert on_ranks(2, failing_save, tmp_path, tmp_path, place, of, 1) == [("NoneType", None)] * 2
    (first, _), (other, _) = failed = on_ranks(2, failing_save, tmp_path, tmp_path, place, of, 2)
    assert (first, other) == (("CheckpointException",) * 2 if place == "fsync" else ("OSError", "NoneType"))
    assert all(again is None for _, again in failed)


def save_into_own_folder(rank: int, world: int, folder: Path) -> Any:
    """As on two nodes that do not share the run's folder."""
    partial = common(folder / "step-00000010.ckpt")
    own = folder / f"node-{rank}" / partial.name
    own.parent.mkdir()
    writing = BackgroundWriter(PATIENCE).start(state(), {"global_step": 1}, own, RETRY)
    return of_all_ranks(str(writing.exception()))


def test_ranks_that_write_into_different_folders_complete_nothing(tmp_path: Path) -> None:
    first, other = on_ranks(2, save_into_own_folder, tmp_path, tmp_path)
    assert "__1_0.distcp" in first and "share the folder" in first
    assert other == "None"  # rank 0 knows
