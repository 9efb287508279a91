"""Work that the ranks of a training share: each does its part of a list, and rank 0 gets all the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from lumos_pl.machinery.progress import mark

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The ranks of a training, which communicate through their hosts: a GPU would first finish all its queued work.

    Args:
        rank: of this process, out of `size`.
        hosts: process group of the hosts; None: there is only one rank.
    """

    rank: int = 0
    size: int = 1
    hosts: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, trainer: Trainer, timeout: timedelta | None = None) -> Self:
        """The ranks of this training; call it on all ranks, once per training.

        Args:
            timeout: how long a rank waits for another's part; by default torch's timeout.
        """
        if trainer.world_size == 1 or not dist.is_initialized():
            return cls()
        return cls(trainer.global_rank, trainer.world_size, dist.new_group(backend="gloo", timeout=timeout))

    def part(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def worst(self, outcome: int) -> int:
        """The highest of all ranks' numbers; call it on all of them."""
        if self.hosts is None:
            return outcome
        mark("waiting for the other ranks' clips", slow=True)
        told = torch.tensor(outcome)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.hosts)
        return int(told)

    def gathered(self, parts: Sequence[T]) -> list[T]:
        """The results of all items, in the order of the whole list, on rank 0; empty elsewhere. Call it on all ranks.

        Args:
            parts: the results of this rank's part.
        """
        if self.hosts is None:
            return list(parts)
        mark("waiting for the other ranks' clips", slow=True)
        of_ranks: list[Sequence[T]] | None = [[]] * self.size if self.rank == 0 else None
        dist.gather_object(list(parts), of_ranks, group=self.hosts)
        if of_ranks is None:
            return []
        whole: list[T] = [of_ranks[place % self.size][place // self.size] for place in range(sum(map(len, of_ranks)))]
        return whole
