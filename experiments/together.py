"""What the ranks of a run settle together before the first step: rank 0 decides, and all write into one folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from lightning import Trainer

from experiments.failures import as_failure, as_temporary, tell
from experiments.run_folder import TOKENS
from lumos_pl.errors import ConfigError, LumosError
from lumos_pl.machinery.atomic_file import naming
from lumos_pl.machinery.lightning_private.ranks import RanksMeet, meeting_of_launched
from lumos_pl.machinery.own_files import partial_of

T = TypeVar("T")
HEARD_WITHIN = timedelta(seconds=60)  # ranks of one launcher come about that far apart
SEEN_WITHIN_S = 60.0  # a network's file system shows a new name to another machine that late


def meet(trainer: Trainer) -> None:
    """Start the ranks that this one starts, and wait until all are there."""
    if isinstance(trainer.strategy, RanksMeet):
        assert trainer.strategy.launcher is not None
        trainer.strategy.launcher.launch(trainer.strategy.meet)


@contextmanager
def failures_told_to_others(num_nodes: int, patience: timedelta) -> Iterator[None]:
    """Before the ranks of a launcher have met: one that fails tells the others, who would wait for it.

    A failure that several have is told by one of them.

    Args:
        patience: how long a rank waits for the others.
    """
    try:
        yield
    except Exception as error:
        meeting = meeting_of_launched(num_nodes, patience)
        if meeting is None:
            raise
        failure = as_temporary(error) or as_failure(error)
        if meeting.tell_failure(failure, lambda: tell(failure), within=HEARD_WITHIN):
            failure.is_told = True
        raise failure from error


def from_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, for all ranks; its failure ends them all, and is rank 0's to tell."""
    if not _are_several():
        return work()
    if dist.get_rank() != 0:
        heard: list[Any] = [None, None]
        dist.broadcast_object_list(heard, src=0)
        if heard[1] is not None:
            raise LumosError.told_elsewhere(*heard[1])
        return cast(T, heard[0])
    try:
        value = work()
    except Exception as error:
        failure = as_failure(error)
        dist.broadcast_object_list([None, (str(failure), failure.exit_status)], src=0)
        raise
    dist.broadcast_object_list([value, None], src=0)
    return value


def check_one_folder(folder: Path, *, seen_within_s: float = SEEN_WITHIN_S) -> None:
    """Raise ConfigError unless all ranks see, and can write into, the folder in which rank 0 writes.

    Otherwise each would save its part of a checkpoint in another place, and no checkpoint would be whole.
    """
    if not _are_several():
        return
    token = from_rank_0(lambda: _put_token(folder))
    mine = socket.gethostname(), _trouble_with(folder / token, seen_within_s)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        with suppress(FileNotFoundError):
            (folder / token).unlink()
    for rank, (host, trouble) in enumerate(ranks):
        if trouble is not None:
            failure = ConfigError(
                "the run's folder is not one for all ranks",
                file=folder.absolute(),
                where=f"rank {rank} on {host}",
                got=trouble,
                expected=f"what rank 0 on {ranks[0][0]} writes",
                fix="give a run.dir that all nodes share",
            )
            failure.is_told = dist.get_rank() != 0
            raise failure


def _put_token(folder: Path) -> str:
    token = partial_of(folder / TOKENS[0])
    with naming(token):
        token.touch(exist_ok=False)
    return token.name


def _trouble_with(token: Path, seen_within_s: float) -> str | None:
    """Why this rank cannot work with rank 0 in the token's folder; None: it can."""
    deadline = time.monotonic() + seen_within_s
    own = partial_of(token.with_name(TOKENS[1]))
    try:
        while not token.exists():
            if time.monotonic() > deadline:
                return f"nothing of it within {seen_within_s:.0f} s"
            with suppress(FileNotFoundError):
                list(token.parent.iterdir())  # has a network's file system ask again
            time.sleep(0.1)
        own.touch(exist_ok=False)
        own.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
