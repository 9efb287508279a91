"""Work that the ranks of a training share: each does its part of a list, and rank 0 has what came of all."""

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
    """The ranks of a training, which talk by their hosts: through GPUs, the answer would wait for all their work.

    Args:
        rank: of this process, of `size`.
        hosts: how they talk; None: there is one rank alone.
    """

    rank: int = 0
    size: int = 1
    hosts: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, trainer: Trainer, timeout: timedelta | None = None) -> Self:
        """Called by all ranks, once a training.

        Args:
            timeout: how long one waits for another's part; default: torch's.
        """
        if trainer.world_size == 1 or not dist.is_initialized():
            return cls()
        return cls(trainer.global_rank, trainer.world_size, dist.new_group(backend="gloo", timeout=timeout))

    def part(self, items: Sequence[T]) -> list[T]:
        """What of a list is this rank's to do: every `size`-th."""
        return list(items[self.rank :: self.size])

    def worst(self, outcome: int) -> int:
        """The highest of all ranks' numbers; called by all of them."""
        if self.hosts is None:
            return outcome
        mark("waiting for the other ranks' clips", slow=True)
        told = torch.tensor(outcome)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.hosts)
        return int(told)

    def gathered(self, parts: Sequence[T]) -> list[T]:
        """What came of each item, in the order of the whole list, on rank 0; elsewhere nothing. Called by all ranks.

        Args:
            parts: what came of this rank's part.
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
