"""Which process failed beside this one: a data worker, or the rank that the others wait for.

That rank is the one that does not say that it waited in vain.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lightning import Trainer

from lumos_pl.errors import LumosError
from lumos_pl.machinery.data_workers import worker_death

ANSWERS = "ranks_waiting"  # in the run's folder, which all nodes share
PATIENCE_S = 10.0  # ranks that wait for one exchange give up at about the same time


def forget_answers(run: Path) -> None:
    """Before anything can fail; rank 0's work."""
    shutil.rmtree(run / ANSWERS, ignore_errors=True)


def silent_ranks(
    run: Path, rank: int, n_ranks: int, *, patience_s: float = PATIENCE_S, ended: Callable[[], list[int]] = list
) -> list[int]:
    """Answer for this rank, whose exchange with the others failed, and wait for their answers.

    Args:
        ended: ranks that are known to have ended; then there is no time to wait: Lightning kills the rest.
    Returns:
        the ranks that have ended, else those that gave no answer: they stall.
    """
    answers = run / ANSWERS
    answers.mkdir(exist_ok=True)
    (answers / str(rank)).touch()
    end = time.monotonic() + patience_s
    while True:
        silent = [other for other in range(n_ranks) if not (answers / str(other)).exists()]
        if gone := ended():
            return gone
        if not silent or time.monotonic() > end:
            return silent
        time.sleep(0.1)


def failure_beside(error: BaseException, trainer: Trainer, seconds: int) -> LumosError | None:
    """What an error says of another process, a data worker or a rank, that failed or stalls; None: it does not."""
    if (death := worker_death(trainer, error)) is not None:
        return death
    if trainer.world_size > 1 and re.search(r"gloo|NCCL|Timed out|Connection (closed|reset)", str(error)):
        silent = _silent_beside(trainer)
        which = f"rank {', '.join(map(str, silent))}" if silent else "another rank"
        return LumosError(
            f"{which} failed or stalls",
            where=f"rank {trainer.global_rank}, step {trainer.global_step}",
            got=" ".join(str(error).split())[:200],
            expected=f"every rank within {seconds} s",
            fix="see what the others say, then resume",
        )
    return None


def _silent_beside(trainer: Trainer) -> list[int]:
    """The ranks that failed or stall; those of them that this one started are ended, or they would stay for ever."""
    first, started = trainer.global_rank + 1, getattr(trainer.strategy.launcher, "procs", [])
    silent = silent_ranks(
        Path(trainer.default_root_dir),
        trainer.global_rank,
        trainer.world_size,
        ended=lambda: [first + i for i, process in enumerate(started) if process.poll() is not None],
    )
    for i, process in enumerate(started):
        if first + i in silent:
            process.kill()
    return silent
