"""What happens to one attempt of a run on a cluster: drawn, and then done to it."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.job import Job
from faults.object_store import ObjectStore
from faults.storage import LONG, READS, WRITES, Storage, Trouble

GRACE_S = 5.0
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a fault may touch.

    Args:
        run: the run's folder.
        data: the folder of the shards.
        uploads: the folder that checkpoints are uploaded to; None: to no folder.
        store: the object store that they are uploaded to.
    """

    run: Path
    data: Path
    uploads: Path | None = None
    store: ObjectStore | None = None

    @property
    def may_lose_its_disk(self) -> bool:
        return self.uploads is not None or self.store is not None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    Args:
        about: in words.
        amid: done to the attempt while it works; it may wait for a step.
        after: done once it has ended: what goes with the machine.
        prepared: done in each rank's process before its command.
        troubles: of the storage, in each rank.
    """

    about: str
    amid: Callable[[Job], None] = lambda job: None
    after: Callable[[], None] = lambda: None
    prepared: Callable[[], None] = lambda: None
    troubles: tuple[Trouble, ...] = ()

    def prepare(self, rank: int, log: Path) -> None:
        """In the process of a rank."""
        self.prepared()
        if self.troubles:
            Storage(self.troubles, log).install()


NONE = Fault(about="nothing")


def _at_step(step: int, delay_s: float, act: Callable[[Job], None]) -> Callable[[Job], None]:
    """Act once a step is begun, or, before the first, so long after the start."""

    def amid(job: Job) -> None:
        if step >= 0 and not job.wait_for_step(step):
            return
        time.sleep(delay_s)
        act(job)

    return amid


def _moment(draw: random.Random, steps: int) -> tuple[int, float, str]:
    """A step to come to, or -1 for the start, and how long after its beginning."""
    step = draw.randrange(-1, steps)
    delay = draw.random() * (0.1 if step >= 0 else 1.5)
    return step, delay, f"{delay:.2f} s after " + (f"step {step} began" if step >= 0 else "the start")


def kill(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """Kill every rank, or one of several."""
    step, delay, when = _moment(draw, steps)
    which = draw.choice([None, *range(ranks)]) if ranks > 1 else None
    act = _at_step(step, delay, lambda job: job.signal(signal.SIGKILL, None if which is None else [which]))
    return Fault(about=f"{'all' if which is None else f'rank {which}'} killed {when}", amid=act)


def lose_node(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """Kill every rank, and lose the disk that the run's folder is on."""
    step, delay, when = _moment(draw, steps)
    act = _at_step(step, delay, lambda job: job.signal(signal.SIGKILL))
    about = f"the machine and its disk lost {when}"
    return Fault(about=about, amid=act, after=lambda: shutil.rmtree(cluster.run, ignore_errors=True))


def preempt(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """SIGTERM, and SIGKILL when the grace is over."""
    step, delay, when = _moment(draw, steps)

    def stop(job: Job) -> None:
        job.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while not job.ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        job.signal(signal.SIGKILL)

    return Fault(about=f"SIGTERM {when}", amid=_at_step(step, delay, stop))


def reads(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """Reads of the data or of the run's files that fail, for less or for longer than they are tried."""
    under = draw.choice([cluster.data, cluster.data, cluster.run])
    error, times = draw.choice(PASSING), draw.choice([1, 2, LONG])
    after = draw.randrange(40)
    trouble = Trouble(error=error, under=str(under), operations=("open", "read"), after=after, times=times)
    return Fault(about=str(trouble), troubles=(trouble,))


def writes(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """Writes into the run's folder that fail."""
    error, times, after = draw.choice(PASSING), draw.choice([1, 2, 5, LONG]), draw.randrange(60)
    trouble = Trouble(error=error, under=str(cluster.run), operations=WRITES, after=after, times=times)
    return Fault(about=str(trouble), troubles=(trouble,))


def full_disk(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """A disk that is full for a while."""
    seconds, after = draw.choice([0.2, 0.5, 2.0, 60.0]), draw.randrange(60)
    trouble = Trouble(
        error=errno.ENOSPC, under=str(cluster.run), operations=("create", "write"), after=after, seconds=seconds
    )
    return Fault(about=str(trouble), troubles=(trouble,))


def refusals(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    """An object store that refuses requests, or a folder of uploads that does."""
    if cluster.store is not None:
        n = draw.choice([1, 3, 12, 30])
        step, delay, when = _moment(draw, steps)
        store = cluster.store
        return Fault(about=f"{n} answers of 503 {when}", amid=_at_step(step, delay, lambda job: store.refuse(n)))
    times, after = draw.choice([1, 2, LONG]), draw.randrange(20)
    operations = draw.choice([("create", "write"), READS])
    trouble = Trouble(
        error=draw.choice(PASSING), under=str(cluster.uploads), operations=operations, after=after, times=times
    )
    return Fault(about=str(trouble), troubles=(trouble,))


Kind = Callable[[random.Random, Cluster, int, int], Fault]
"""Given the cluster, the ranks of the attempt and the steps that are left."""
KINDS: tuple[Kind, ...] = (kill, kill, preempt, preempt, reads, reads, writes, writes, full_disk)
OF_UPLOADS: tuple[Kind, ...] = (lose_node, lose_node, refusals)


def draw_fault(draw: random.Random, cluster: Cluster, ranks: int, steps: int) -> Fault:
    kinds = (*KINDS, *(OF_UPLOADS * 2 if cluster.may_lose_its_disk else ()))
    return draw.choice(kinds)(draw, cluster, ranks, steps)
