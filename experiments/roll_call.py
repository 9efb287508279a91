"""Which rank it is that the others wait for: the one that does not say that it waited in vain."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

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
