"""The WebDataset stream from planned batches to packed ones; each stage is a generator.

order (of this rank and worker) -> fetch_ahead -> load_sequences -> pack_sequences -> errors_as_items
"""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from multiprocessing import get_start_method
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import torch
import webdataset
from torch.utils.data import DataLoader, get_worker_info

from data_modules.config import TIMEOUT_S
from data_modules.readers import Shards
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import BadSample
from data_modules.stream.fetch_ahead import fetch_ahead
from data_modules.stream.joint import Order
from data_modules.stream.left_out import LeftOut, TooManyLeftOut
from data_modules.stream.plan import PlannedBatch, PlannedSample, StreamPlan
from data_modules.stream.position import StreamPosition
from data_modules.stream.substitutes import Substitutes
from data_modules.stream.training_sequence import SequenceBuilder, TrainingSequence, cut
from lumos_pl.batch import PackedBatch, pack
from lumos_pl.errors import ConfigError, LumosError, TemporaryError, causes, located
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.parent_process import end_of, end_with_parent, renew, state_of

DEATH_TAKES_S = 1.0  # until the system tells of a process's end, at the most
LEAVE = signal.SIGURG  # to a worker: nobody else sends it to a whole group of processes, and by itself it does nothing
WORKERS_OF_A_CORE, FEWEST_MOST_WORKERS = 8, 32
TORCH_NAMES_IT = r"DataLoader worker \(pid(?:\(s\))? ([0-9]+)"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data of one kind, or of one source of a mixture, ready to stream.

    Args:
        name: begins the names of its samples' appearances, see `PackedBatch`.
    """

    name: str
    shards: Shards
    plan: StreamPlan
    sequences: SequenceBuilder

    def read(self, shard: int) -> list[ShardSample]:
        """The samples of a shard; only the frames that are used are kept."""
        return [cut(sample, self.plan.config.frames, self.sequences.layout) for sample in self.shards.read(shard)]

    def read_each(self, shard: int) -> list[ShardSample | BadSample]:
        """As `read`, with what is wrong in the place of a sample that cannot be used."""
        read = getattr(self.shards, "read_each", self.shards.read)  # which shards of somebody's own need not have
        frames, layout = self.plan.config.frames, self.sequences.layout
        return [cut(one, frames, layout) if isinstance(one, ShardSample) else one for one in read(shard)]

    def first(self, count: int, *, frames: int | None = None) -> Iterator[ShardSample]:
        """The first samples, in the order of the shards; cut to `frames` RGB frames instead of the run's."""
        frames = frames or self.plan.config.frames
        samples = (sample for shard in range(len(self.shards.manifest.shards)) for sample in self.shards.read(shard))
        return (cut(sample, frames, self.sequences.layout) for sample in islice(samples, count))

    def training_sequence(
        self, planned: PlannedSample, sample: ShardSample, *, instead_of: PlannedSample | None = None
    ) -> TrainingSequence:
        """The sequence of a sample that is planned, or that stands in for one that is."""
        appearance = f"{self.name}/{planned.epoch}/{sample.key}"
        if instead_of is not None:
            appearance += f"~{instead_of.shard}.{instead_of.place}"  # no key has a dot or a tilde
        with located(self.shards.file(planned.shard), f"sample {sample.key}"):
            return self.sequences.build(sample, appearance)


def batch_stream(
    order: Callable[[int, int], Iterator[PlannedBatch]],
    sources: Mapping[str, Source],
    layout: TokenLayout,
    *,
    max_bad_samples: int = 0,
) -> webdataset.DataPipeline:
    """Batches as they come to the training; a LumosError comes as the last item.

    Args:
        order: given (worker, workers), the batches of that worker.
        sources: by the kinds, or names, that the batches have.
        max_bad_samples: that may be left out; see `substitutes`.
    """
    return webdataset.DataPipeline(
        partial(_of_this_worker, order),
        partial(fetch_ahead, sources=sources),
        partial(load_sequences, sources=sources, max_bad_samples=max_bad_samples),
        partial(pack_sequences, layout=layout),
        errors_as_items,
    )


def _of_this_worker(order: Callable[[int, int], Iterator[PlannedBatch]]) -> Iterator[PlannedBatch]:
    info = get_worker_info()
    return order(0, 1) if info is None else order(info.id, info.num_workers)


def training_order(
    worker: int,
    n_workers: int,
    *,
    plans: Mapping[str, StreamPlan],
    order: Order,
    position: StreamPosition,
) -> Iterator[PlannedBatch]:
    """The endless micro-batches of one worker of one rank: worker w of W takes every W-th of the rank's.

    With one source of data, where ranks * W divides the number of streams, each stream is one worker's own.

    Args:
        order: which source each micro-batch is of.
    """
    walks = {name: plan.walk() for name, plan in plans.items()}
    first = position.start + position.rank + worker * position.world_size
    for micro_batch in count(first, position.world_size * n_workers):
        name, index = order.locate(position.of_order(micro_batch))
        yield walks[name].batch(index)


def validation_order(worker: int, n_workers: int, *, batches: Sequence[PlannedBatch]) -> Iterator[PlannedBatch]:
    return islice(batches, worker, None, n_workers)


class LoadedBatch(NamedTuple):
    clips: list[TrainingSequence]
    left_out: tuple[LeftOut, ...] = ()
    counts: bool = True


def load_sequences(
    stream: Iterable[PlannedBatch], *, sources: Mapping[str, Source], max_bad_samples: int = 0
) -> Iterator[LoadedBatch]:
    """Read the samples of each batch; each stream keeps the last shards it took from."""
    readers: dict[tuple[str, int], Callable[[int], Any]] = {}
    substitutes = {kind: Substitutes(source, max_bad_samples) for kind, source in sources.items()}
    for batch in stream:
        source = sources[batch.kind]
        key, keep = (batch.kind, batch.stream), source.plan.config.shuffle_shards + 1
        if max_bad_samples:
            read = readers.setdefault(key, substitutes[batch.kind].reader(keep))
            yield LoadedBatch(*substitutes[batch.kind].sequences(batch, read), counts=batch.counts)
            continue
        if key not in readers:
            readers[key] = lru_cache(maxsize=keep)(source.read)
        samples = [(planned, readers[key](planned.shard)[planned.place]) for planned in batch.samples]
        sequences = [source.training_sequence(planned, sample) for planned, sample in samples]
        yield LoadedBatch(sequences, counts=batch.counts)


def pack_sequences(stream: Iterable[LoadedBatch], *, layout: TokenLayout) -> Iterator[PackedBatch]:
    for clips, left_out, counts in stream:
        batch = pack(
            [clip.sequence for clip in clips],
            [clip.appearance for clip in clips],
            layout,
            n_given=[clip.n_given for clip in clips],
            tokens=[clip.tokens for clip in clips],
        )
        yield batch if counts and not left_out else replace(batch, left_out=left_out, counts=counts)


def errors_as_items(stream: Iterable[PackedBatch]) -> Iterator[PackedBatch | LumosError]:
    """Hand an expected failure on as the last item: raised in a worker it would arrive as a page of traceback."""
    try:
        yield from stream
    except LumosError as error:
        yield error


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
    for number in signal.SIGTERM, signal.SIGINT:
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
