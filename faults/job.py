"""One attempt of a command that a scheduler starts: its ranks, on the nodes of a cluster, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from faults.runs import MAX_SECONDS, Run, last_step
from lumos_pl.machinery.stop_request import SIGNALS

AGAIN = 75
COMING_S = 60.0  # to any step
TELLING = ("lumos:", "Traceback", "resuming", "passed over", "Exception in", "Exception ignored", "Fatal")
STOPPED = {128 + number for number in SIGNALS}


def is_for_a_person(status: int) -> bool:
    """Whether a scheduler must not simply start the command again: neither a signal nor trouble that passes."""
    return status > 0 and status != AGAIN and status not in STOPPED


class Batch(NamedTuple):
    """A micro-batch of which a rank knows the loss."""

    start: int
    step: int
    loss: str
    samples: list[str]


class Job(ABC):
    """The ranks of one attempt, and what they write: each its samples to `rank-N.jsonl`, what it says to `rank-N.said`.

    Args:
        logs: a folder, for these files.
        ranks: those that are started.
    """

    def __init__(self, logs: Path, ranks: Iterable[int]) -> None:
        self.logs, self.ranks = logs, tuple(ranks)

    @abstractmethod
    def ended(self) -> bool: ...

    @abstractmethod
    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """To some ranks and their data workers; None: to all."""

    @abstractmethod
    def statuses(self) -> dict[int, int | None]:
        """The exit status by rank, negative where a signal ended it; None: it did not end, and is killed."""

    def wait(self, at_most: float = MAX_SECONDS) -> dict[int, int | None]:
        """Until all ended, or so long; see `statuses`."""
        deadline = time.monotonic() + at_most
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.statuses()

    def wait_for_step(self, step: int) -> bool:
        """Whether rank 0 came to a step; it returns where the attempt is over, or takes too long, too."""
        deadline = time.monotonic() + COMING_S
        while not self.ended() and time.monotonic() < deadline:
            if last_step(self.logs / "rank-0.jsonl") >= step:
                return True
            time.sleep(0.005)
        return False

    def batches_of(self, rank: int) -> list[Batch]:
        return batches(self.logs / f"rank-{rank}.jsonl")

    @property
    def said(self) -> str:
        """The lines of ours and of what nobody foresaw, by rank."""
        told = []
        for file in sorted(self.logs.glob("*.said")):
            lines = file.read_text(errors="replace").splitlines()
            told += [f"[{file.stem}] {line}" for line in lines if line.startswith(TELLING)]
        return "\n".join(told)


class StartedJob(Job):
    """Started as torchrun starts them, but by nobody who looks after them; a process group each, so each may be lost.

    Args:
        prepare: done in each rank's process before the command, given its rank.
        absent: ranks that are not started.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        logs: Path,
        *,
        ranks: int = 1,
        prepare: Callable[[int], None] = lambda rank: None,
        absent: Sequence[int] = (),
    ) -> None:
        super().__init__(logs, (rank for rank in range(ranks) if rank not in absent))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def begin(rank: int) -> Callable[[], None]:
            def begun() -> None:
                os.environ.update(TORCHELASTIC_RUN_ID="x", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
                os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
                prepare(rank)

            return begun

        self.runs = {rank: Run(arguments, logs / f"rank-{rank}.jsonl", prepare=begin(rank)) for rank in self.ranks}

    def ended(self) -> bool:
        return all(run.ended() for run in self.runs.values())

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        for rank, run in self.runs.items():
            if ranks is None or rank in ranks:
                with suppress(ProcessLookupError):
                    run.signal(number)

    def statuses(self) -> dict[int, int | None]:
        hung = [rank for rank, run in self.runs.items() if not run.ended()]
        self.signal(signal.SIGKILL)
        return {rank: None if rank in hung else run.wait() for rank, run in self.runs.items()}


def batches(file: Path) -> list[Batch]:
    """All that a rank trained on, in any attempt, in that order."""
    found = []
    for line in file.read_text().split("\n")[:-1] if file.exists() else ():
        entry: dict[str, Any] = json.loads(line)
        found.append(Batch(entry["start"], entry["step"], entry["loss"], entry["samples"]))
    return found
