"""What a Trainer takes batches from: loading processes of a stream, and what is said of one that dies or is silent."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_start_method
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

import torch
import webdataset
from torch.utils.data import DataLoader

from data_modules.config import TIMEOUT_S
from data_modules.stream.left_out import LeftOut, TooManyLeftOut
from lumos_pl.errors import ConfigError, LumosError, TemporaryError, causes
from lumos_pl.machinery.parent_process import end_of, end_with_parent, renew, state_of
from lumos_pl.machinery.stop_request import SIGNALS

DEATH_TAKES_S = 1.0  # until the system tells of a process's end, at the most
LEAVE = signal.SIGURG  # to a worker: nobody else sends it to a whole group of processes, and by itself it does nothing
WORKERS_OF_A_CORE, FEWEST_MOST_WORKERS = 8, 32
TORCH_NAMES_IT = r"DataLoader worker \(pid(?:\(s\))? ([0-9]+)"


def check_workers(num_workers: int) -> None:
    """Raise ConfigError for more loading processes than this machine's cores can serve."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(FEWEST_MOST_WORKERS, WORKERS_OF_A_CORE * cores)
    if num_workers > most:
        raise ConfigError(
            "more data workers than this machine can serve",
            where="data.num_workers",
            got=num_workers,
            expected=f"at most {most} ({cores} cores)",
        )


def _begin_worker(worker: int, *, parent: int | None) -> None:
    """A signal to the whole process group asks the run to save and leave; it still needs its workers for that.

    Args:
        parent: after whose end nobody needs them; None: it is not known that the system tells of it.
    """
    gc.freeze()  # what came with the fork is the parent's, its garbage too, such as loaders with workers of their own
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(LEAVE, lambda *_: os._exit(0))
    if parent is not None:
        end_with_parent(parent)


def _kill(workers: Sequence[BaseProcess], parent: int) -> None:
    """End the workers of this process at once: one that hangs would be waited for as the process ends."""
    for worker in workers if os.getpid() == parent else ():  # a forked process has a copy of all that this one has
        with suppress(RuntimeError):  # torch tells of each that ends
            worker.kill()
            worker.join(DEATH_TAKES_S)
        with suppress(RuntimeError):  # and would again, of one that nobody has joined
            worker.join(DEATH_TAKES_S)


def _dismiss(workers: Sequence[BaseProcess], parent: int, done: Event | None) -> None:
    """Have the workers of this process leave that nobody asks any more; of killed ones torch would tell as failures.

    Args:
        done: what torch sets next to end its workers, and what these look at between batches.
    """
    mine = [worker for worker in workers if worker.pid is not None] if os.getpid() == parent else []
    for worker in mine:
        with suppress(ProcessLookupError):
            os.kill(worker.pid or 0, LEAVE)
    for worker in mine:
        worker.join(DEATH_TAKES_S)
    _kill([worker for worker in mine if worker.is_alive()], parent)
    if mine and done is not None:
        renew(done)


class TokenLoader:
    """Loads the batches of a stream, raising in this process what its workers handed on.

    Every iteration begins where the stream is then, with workers of its own. It is no DataLoader, since Lightning would
    build such a one anew by the arguments that it knows; for Lightning it can be resumed, its state being the step.

    Args:
        stream: what is read from now on; asked for as an iteration begins.
        n_batches: how many there are; None: without end.
        timeout_s: how long to wait for a worker's batch.
        note: takes what could not be used for a batch, as it comes to be used: a Trainer asks for one batch of an
            endless stream ahead, and workers read further ahead what may never be used.
    """

    def __init__(
        self,
        stream: Callable[[], webdataset.DataPipeline],
        num_workers: int,
        *,
        n_batches: int | None = None,
        timeout_s: int = TIMEOUT_S,
        note: Callable[[Sequence[LeftOut]], None] = lambda left_out: None,
    ) -> None:
        self._note = note
        self._stream, self._num_workers, self._n_batches = stream, num_workers, n_batches
        self._timeout_s = timeout_s
        self._workers: list[BaseProcess] = []  # in the order of their numbers
        self._last: dict[int, str] = {}  # by worker: the last sample that came from it
        self._taken = 0  # batches of this iteration: the workers take turns
        self._waits_since: float | None = None  # seconds of the monotonic clock
        self._silent: TemporaryError | None = None  # of a worker that was waited for in vain

    @property
    def is_endless(self) -> bool:
        return self._n_batches is None

    def __len__(self) -> int:
        if self._n_batches is None:
            raise TypeError("the stream has no end")
        return self._n_batches

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the Trainer's step says where the stream is."""

    def __iter__(self) -> Iterator[Any]:
        # The kernel takes the end of the thread that started a process for the end of its parent.
        by_itself = get_start_method(allow_none=True) != "forkserver"  # else a server of Python's starts them
        parent = os.getpid() if by_itself and threading.current_thread() is threading.main_thread() else None
        loader: DataLoader[Any] = DataLoader(
            self._stream(),
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_begin_worker, parent=parent),  # no timeout: with one torch looks for no deaths
        )
        items: Iterator[Any] = iter(loader)
        self._workers, self._last, self._taken, self._silent = list(getattr(items, "_workers", [])), {}, 0, None
        # Torch ends them as the iterator goes; where it goes as one of a circle, its queues may have gone before it.
        done = getattr(items, "_workers_done_event", None)
        weakref.finalize(items, _dismiss, self._workers, os.getpid(), done)
        for item in self._awaited(items):
            if isinstance(item, LumosError):
                break
            self._last[self._taken % max(1, self._num_workers)] = item.names[-1]
            self._taken += 1
            if not self.is_endless:
                self._note(item.left_out)
            yield item
            if self.is_endless:
                self._note(item.left_out)
        else:
            return
        del items  # ends the workers now; the exception's traceback would keep them
        if isinstance(item, TooManyLeftOut):
            self._note(item.left_out)  # which knows of the other workers and ranks, and names the list
        raise item

    def _awaited(self, items: Iterator[Any]) -> Iterator[Any]:
        """The items, with a line for a worker that does not answer in time."""
        ended = threading.Event()
        if self._workers:
            threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            while True:
                self._waits_since = time.monotonic()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    self._waits_since = None
                yield item
        except (RuntimeError, OSError, EOFError) as error:
            if self._silent is None:
                raise
            raise self._silent from error
        finally:
            ended.set()

    def _watch(self, ended: threading.Event) -> None:
        """End a wait that takes too long: torch, which looks for deaths every few seconds, then finds them."""
        while not ended.wait(1.0):
            since = self._waits_since
            if since is not None and time.monotonic() - since > self._timeout_s:
                self._silent = self._silence()
                _kill(self._workers, os.getpid())
                return

    def _silence(self) -> TemporaryError:
        """What to say of the worker that is waited for in vain: of those that are stopped the first, if there are."""
        states = [state_of(worker.pid or 0) for worker in self._workers]
        number = next((i for i, state in enumerate(states) if state == "stopped"), self._taken % self._num_workers)
        return TemporaryError(
            "a data worker does not answer",
            where=self._place(number),
            got=f"pid {self._workers[number].pid}, {states[number]}",
            expected=f"a batch within {self._timeout_s} s (data.timeout_s)",
            fix="see what it reads from, then resume; slow storage needs a longer time",
        )

    def _place(self, number: int) -> str:
        return f"worker {number}" + (f", after sample {self._last[number]}" if number in self._last else "")

    def worker_death(self, error: BaseException) -> TemporaryError | None:
        """What is to be said of a worker that died, which comes up wherever the training is; None: all of them live.

        Torch names the worker, unless the connection to it breaks first, or the error was taken for another. It does so
        for one that was ended here as well, even after that was said.
        """
        if self._silent is not None:
            return self._silent
        chain = list(causes(error))
        said = next(filter(None, (re.search(TORCH_NAMES_IT, str(one)) for one in chain)), None)
        if said is None and any(isinstance(one, ConnectionError | EOFError) for one in chain):
            for worker in self._workers:
                with suppress(RuntimeError):  # by which torch tells of that end, here of all places
                    worker.join(DEATH_TAKES_S)  # its connection breaks before the system tells of its end
        pids = [worker.pid for worker in self._workers]
        dead = next((worker.pid for worker in self._workers if worker.exitcode), None)
        pid = int(said[1]) if said and int(said[1]) in pids else dead
        if pid is None:
            return None
        number = pids.index(pid)
        code = self._workers[number].exitcode
        return TemporaryError(
            "a data worker died",
            where=self._place(number),
            got=f"pid {pid}, {end_of(code)}" if code is not None else f"pid {pid}",
            fix="resume; if it is killed again, memory is short: lower data.num_workers",
        )
