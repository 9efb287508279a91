"""An attempt that torchrun starts, and starts again, by its own agent: it forks the ranks, none imports torch anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from faults.job import AGAIN, Job, is_for_a_person
from faults.processes import forked, lead_output_to
from faults.runs import lumos

RESTARTS = 2
ENDING_S = "8"  # between torchrun's SIGTERM and its SIGKILL to the other ranks of an attempt that failed


class TorchrunJob(Job):
    """The ranks of one node, which torchrun looks after.

    Its own status says nothing but whether all is well, so those of the ranks are looked at, as a scheduler's script
    may do by torchrun's report.

    Args:
        prepare: done in each rank's process before the command, given its rank.
    """

    def __init__(self, arguments: Sequence[str], logs: Path, *, ranks: int, prepare: Callable[[int], None]) -> None:
        super().__init__(logs, range(ranks))
        self._status: int | None = None
        self._pid = forked(partial(_launch, list(arguments), logs, ranks, prepare), logs / "torchrun.said")
        with suppress(OSError):  # by whichever of the two comes first
            os.setpgid(self._pid, self._pid)

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is not None

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """To some ranks; None: to torchrun, which passes on what can be."""
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            if ranks is not None:
                for rank in ranks:
                    os.kill(int(_pid_file(self.logs, rank).read_text()), number)
            elif number == signal.SIGKILL:
                os.killpg(self._pid, number)
            elif not self.ended():
                os.kill(self._pid, number)

    def statuses(self) -> dict[int, int | None]:
        hung = not self.ended()
        self.signal(signal.SIGKILL)  # ranks that it left, too
        if hung:
            os.waitpid(self._pid, 0)
        return dict.fromkeys(self.ranks, None if hung else self._status)


def _launch(arguments: list[str], logs: Path, ranks: int, prepare: Callable[[int], None]) -> int:
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = ENDING_S
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=logs.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        monitor_interval=0.1,
        start_method="fork",
    )
    try:
        elastic_launch(config, _rank)(arguments, logs, prepare)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as error:
        statuses = [failure.exitcode for failure in error.failures.values()]
        return next(filter(is_for_a_person, statuses), AGAIN)
    return 0


def _rank(arguments: list[str], logs: Path, prepare: Callable[[int], None]) -> None:
    """In a process of torchrun's."""
    rank = int(os.environ["RANK"])
    _pid_file(logs, rank).write_text(str(os.getpid()))
    lead_output_to(logs / f"rank-{rank}.said")
    try:
        status = lumos(arguments, logs / f"rank-{rank}.jsonl", prepare=partial(prepare, rank))
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    if status:
        os._exit(status)  # torchrun takes all that returns for finished


def _pid_file(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.pid"
