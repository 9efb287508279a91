"""Jobs of SLURM: before their time is up they are put back into the queue, and start the same command again.

SLURM warns with a signal if it is asked to (`sbatch --signal=USR1@300`). The run then saves and leaves as on
any other signal, and asks for the rest of its time. After a preemption or a node's failure SLURM requeues by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lumos_pl.machinery.lightning_private.ranks import process_rank
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest


def job_id() -> str | None:
    """The job that this process is of; None outside SLURM."""
    return os.environ.get("SLURM_JOB_ID")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """A StopRequest; where it was SLURM's warning, the job is requeued once everything is left in good order."""
    stop = StopRequest()
    try:
        with stop:
            yield stop
    except StoppedBySignal:
        job = job_id()
        if job is not None and stop.number == signal.SIGUSR1 and not process_rank():
            _requeue(job)
        raise


def _requeue(job: str) -> None:
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failure = done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else None
    except OSError as error:
        failure = error.strerror
    if failure is not None:
        told = f"lumos: the job cannot be requeued | job {job} | got {failure} | `lumos resume` goes on with its run"
        print(" ".join(told.split()), file=sys.stderr)
