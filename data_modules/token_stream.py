"""The WebDataset stream from planned batches to packed ones; each stage is a generator.

order (of this rank and worker) -> load_sequences -> pack_sequences -> errors_as_items
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import webdataset
from torch.utils.data import DataLoader, get_worker_info

from data_modules.joint import Alternation
from data_modules.position import StreamPosition
from data_modules.readers import Shards
from data_modules.shard_sample import ShardSample
from data_modules.stream_plan import PlannedBatch, PlannedSample, StreamPlan
from data_modules.training_sequence import SequenceBuilder, TrainingSequence, cut
from lumos_pl.batch import PackedBatch, pack
from lumos_pl.errors import DataError, LumosError, located
from lumos_pl.layout import TokenLayout

DEATH_TAKES_S = 1.0  # until the system tells of a process's end, at the most


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data of one kind, ready to stream.

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

    def first(self, count: int, *, frames: int | None = None) -> Iterator[ShardSample]:
        """The first samples, in the order of the shards; cut to `frames` RGB frames instead of the run's."""
        frames = frames or self.plan.config.frames
        samples = (sample for shard in range(len(self.shards.manifest.shards)) for sample in self.shards.read(shard))
        return (cut(sample, frames, self.sequences.layout) for sample in islice(samples, count))

    def training_sequence(self, planned: PlannedSample, sample: ShardSample) -> TrainingSequence:
        with located(self.shards.file(planned.shard), f"sample {sample.key}"):
            return self.sequences.build(sample, f"{self.name}/{planned.epoch}/{sample.key}")


def batch_stream(
    order: Callable[[int, int], Iterator[PlannedBatch]], sources: Mapping[str, Source], layout: TokenLayout
) -> webdataset.DataPipeline:
    """Batches as they come to the training; a LumosError comes as the last item.

    Args:
        order: given (worker, workers), the batches of that worker.
        sources: by kind.
    """
    return webdataset.DataPipeline(
        partial(_of_this_worker, order),
        partial(load_sequences, sources=sources),
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
    pattern: Sequence[str],
    position: StreamPosition,
) -> Iterator[PlannedBatch]:
    """The endless micro-batches of one worker of one rank: worker w of W takes every W-th of the rank's.

    With one kind of data, where ranks * W divides the number of streams, each stream is one worker's own.

    Args:
        pattern: the kinds of the optimizer steps, over and over.
    """
    walks = {kind: plan.walk() for kind, plan in plans.items()}
    alternation = Alternation(pattern=tuple(pattern), per_step=position.per_step)
    first = position.start + position.rank + worker * position.world_size
    for micro_batch in count(first, position.world_size * n_workers):
        kind, index = alternation.locate(micro_batch)
        yield walks[kind].batch(index)


def validation_order(worker: int, n_workers: int, *, batches: Sequence[PlannedBatch]) -> Iterator[PlannedBatch]:
    return islice(batches, worker, None, n_workers)


def load_sequences(
    stream: Iterable[PlannedBatch], *, sources: Mapping[str, Source]
) -> Iterator[list[TrainingSequence]]:
    """Read the samples of each batch; each stream keeps the last shards it took from."""
    readers: dict[tuple[str, int], Callable[[int], list[ShardSample]]] = {}
    for batch in stream:
        source = sources[batch.kind]
        key = batch.kind, batch.stream
        if key not in readers:
            readers[key] = lru_cache(maxsize=source.plan.config.shuffle_shards + 1)(source.read)
        read = readers[key]
        yield [source.training_sequence(planned, read(planned.shard)[planned.place]) for planned in batch.samples]


def pack_sequences(stream: Iterable[list[TrainingSequence]], *, layout: TokenLayout) -> Iterator[PackedBatch]:
    for clips in stream:
        yield pack(
            [clip.sequence for clip in clips],
            [clip.appearance for clip in clips],
            layout,
            n_given=[clip.n_given for clip in clips],
            tokens=[clip.tokens for clip in clips],
        )


def errors_as_items(stream: Iterable[PackedBatch]) -> Iterator[PackedBatch | LumosError]:
    """Hand an expected failure on as the last item: raised in a worker it would arrive as a page of traceback."""
    try:
        yield from stream
    except LumosError as error:
        yield error


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to the whole process group asks the run to save and leave; it still needs its workers for that."""
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)


class TokenLoader:
    """Loads the batches of a stream, raising in this process what its workers handed on.

    Every iteration begins where the stream is then, with workers of its own. It is no DataLoader, since Lightning would
    build such a one anew by the arguments that it knows; for Lightning it can be resumed, its state being the step.

    Args:
        stream: what is read from now on; asked for as an iteration begins.
        n_batches: how many there are; None: without end.
    """

    def __init__(
        self, stream: Callable[[], webdataset.DataPipeline], num_workers: int, *, n_batches: int | None = None
    ) -> None:
        self._stream, self._num_workers, self._n_batches = stream, num_workers, n_batches
        self._workers: dict[int | None, BaseProcess] = {}  # in the order of their numbers
        self._last: Sequence[str] = ()

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
        loader: DataLoader[Any] = DataLoader(
            self._stream(),
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_run,
        )
        items: Iterator[Any] = iter(loader)
        self._workers = {worker.pid: worker for worker in getattr(items, "_workers", [])}
        for item in items:
            if isinstance(item, LumosError):
                break
            self._last = item.names
            yield item
        else:
            return
        del items  # ends the workers now; the exception's traceback would keep them
        raise item

    def worker_death(self, error: BaseException) -> DataError | None:
        """What an error says of a worker that died; it comes wherever the training is. None: another error.

        Torch names the worker, unless the connection to it breaks first.
        """
        said = re.search(r"DataLoader worker \(pid(?:\(s\))? ([0-9]+)", str(error))
        broken = isinstance(error, ConnectionError | EOFError)
        for worker in self._workers.values() if broken and not said else []:
            worker.join(DEATH_TAKES_S)  # its connection breaks before the system tells of its end
        dead = next((pid for pid, worker in self._workers.items() if broken and worker.exitcode), None)
        pid = int(said[1]) if said else dead
        if pid is None:
            return None
        number = list(self._workers).index(pid) if pid in self._workers else "of a validation"
        after = f", after sample {self._last[-1]}" if self._last else ""
        code = self._workers[pid].exitcode if pid in self._workers else None
        ended = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        return DataError(
            "a data worker died",
            where=f"worker {number}{after}",
            got=f"pid {pid}, {ended}" if code is not None else f"pid {pid}",
            fix="resume; if it is killed again, memory is short: lower data.num_workers",
        )
