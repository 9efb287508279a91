"""A checkpoint looked through by all ranks of a run: each reads a part of its bytes, and all learn the verdict.

    rank 0   .metadata meta.pt __0_0.distcp     digests compared, and what lies in them with the metadata
    rank 1   __1_0.distcp                       in the same reading
             ...                                a single file is rank 0's alone

Nobody loads anything before all have said that their parts are whole. What then is loaded, each rank reads once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from lumos_pl.checkpoints.complete import is_checkpoint, with_steps_names
from lumos_pl.checkpoints.digests import DIGESTED_AT_ONCE, digest_of_file, digests_written, has_digest
from lumos_pl.checkpoints.sharded import FolderReader, is_sharded, writer_of
from lumos_pl.checkpoints.trouble import read_again
from lumos_pl.checkpoints.verdicts import Verdict, remember, signature
from lumos_pl.errors import LumosError, TemporaryError
from lumos_pl.machinery.retrying import RetryConfig

T = TypeVar("T")


@dataclass(frozen=True)
class _Found:
    """What a rank says of its part.

    Args:
        damaged: a file that is not as it was written.
        looked_through: whether all that it holds is what the metadata say.
        trouble: what `TemporaryError` is made with, of a rank that could not read its part.
    """

    damaged: str | None = None
    looked_through: bool = True
    trouble: Mapping[str, Any] | None = None


def look_through_together(source: Path, *, retry: RetryConfig | None = None, timeout: timedelta | None = None) -> None:
    """Have the newest whole checkpoint found by all ranks, each of which reads a part: all call this alike.

    Afterwards `newest_complete`, and whoever opens a checkpoint, knows what was found, and reads nothing of it again
    for that. One process alone has nothing to share: then nothing is done.

    Args:
        source: a run's folder, the folder of its checkpoints, or one checkpoint.
        retry: how long a read may fail.
        timeout: how long a rank waits for the others; default: torch's.
    Raises:
        TemporaryError: on all ranks, if one cannot read its part for longer than `retry` allows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        for name in from_rank_0(_candidates(source) if dist.get_rank() == 0 else [], group):
            if _look_through(source.resolve() / name, retry or RetryConfig(), group):
                return
    finally:
        dist.destroy_process_group(group)


def _candidates(source: Path) -> list[Path]:
    """What has a digest, newest first, each by its way from the source: it may lie elsewhere on another node."""
    source = source.resolve()
    folder = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    steps = [] if is_sharded(folder) else [path for path in with_steps_names(folder) if is_checkpoint(path)]
    return [path.relative_to(source) for path in steps[::-1] or [source] if path.exists() and has_digest(path)]


def _look_through(checkpoint: Path, retry: RetryConfig, group: dist.ProcessGroup) -> bool:
    """Whether it is whole, for all ranks to remember."""
    when = signature(checkpoint)
    found = _found(checkpoint, retry, group)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (found, when is not None), group=group)
    trouble = next((one.trouble for one, _ in ranks if one.trouble is not None), None)
    if trouble is not None:
        raise TemporaryError(**trouble)
    if when is None or not all(there for _, there in ranks):
        return False  # it has just changed: whoever opens it will see
    damage = next((one.damaged for one, _ in ranks if one.damaged is not None), None)
    verdict = Verdict(damage, looked_through=all(one.looked_through for one, _ in ranks))
    remember(checkpoint, verdict, when)
    return damage is None


def _found(checkpoint: Path, retry: RetryConfig, group: dist.ProcessGroup) -> _Found:
    """What there is in this rank's part, which rank 0 deals out."""
    dealt = from_rank_0(_deal(checkpoint, retry) if dist.get_rank() == 0 else _Found(), group)
    if isinstance(dealt, _Found):
        return dealt
    digests: dict[Path, str] = {checkpoint.parent / name: digest for name, digest in dealt[dist.get_rank()].items()}
    try:
        reader = FolderReader(checkpoint) if is_sharded(checkpoint) else None
    except LumosError:  # odd or damaged metadata, which its digest will tell
        reader = None
    odd = reader is None and checkpoint.is_dir()

    def read(file: Path) -> str:
        nonlocal odd
        if reader is None:
            return digest_of_file(file)
        digest, found = reader.digest_and_check(file)
        odd = odd or found is not None
        return digest

    def damage(file: Path) -> str | None:
        try:
            return None if read_again(partial(read, file), retry, file) == digests[file] else file.name
        except TemporaryError:
            raise
        except (LumosError, OSError):  # gone, or no regular file
            return file.name

    try:
        with ThreadPoolExecutor(DIGESTED_AT_ONCE) as pool:
            damages = list(pool.map(damage, digests))
    except TemporaryError as error:
        return _Found(trouble=error.parts)
    return _Found(next(filter(None, damages), None), looked_through=not odd)


def _deal(checkpoint: Path, retry: RetryConfig) -> list[dict[str, str]] | _Found:
    """Digests by the names of each rank's files, of about as many bytes each; or what rank 0 sees already."""
    try:
        digests = read_again(partial(digests_written, checkpoint), retry, checkpoint)
        there = {f"{checkpoint.name}/{file.name}" for file in checkpoint.iterdir()} if checkpoint.is_dir() else None
        sizes = {name: (checkpoint.parent / name).stat().st_size for name in digests}
    except TemporaryError as error:
        return _Found(trouble=error.parts)
    except (LumosError, OSError):
        return _Found(damaged="its digest, or a file that it names")
    if there not in (None, {*digests}):
        return _Found(damaged="a file too many")
    return [{name: digests[name] for name in part} for part in by_bytes(sizes, dist.get_world_size())]


def by_bytes(sizes: Mapping[str, int], n_parts: int) -> list[list[str]]:
    """Files in so many parts of about as many bytes.

    A rank has what a rank of its number wrote, which it will load as well; of what is left the largest first, each to
    the part that has least.
    """
    parts: list[list[str]] = [[] for _ in range(n_parts)]
    n_bytes = [0] * n_parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        writer = writer_of(name.rpartition("/")[2])
        number = writer if writer < n_parts else n_bytes.index(min(n_bytes))
        parts[number].append(name)
        n_bytes[number] += sizes[name]
    return parts


def from_rank_0(value: T, group: dist.ProcessGroup) -> T:
    """Rank 0's value, on all ranks of the group."""
    sent = [value]
    dist.broadcast_object_list(sent, src=0, group=group)
    return sent[0]
