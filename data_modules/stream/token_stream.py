"""The WebDataset stream from planned batches to packed ones; each stage is a generator.

order (of this rank and worker) -> fetch_ahead -> load_sequences -> pack_sequences -> errors_as_items
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any, NamedTuple

import webdataset
from torch.utils.data import get_worker_info

from data_modules.stream.fetch_ahead import fetch_ahead
from data_modules.stream.joint import Order
from data_modules.stream.left_out import LeftOut
from data_modules.stream.plan import PlannedBatch, StreamPlan
from data_modules.stream.position import StreamPosition
from data_modules.stream.source import Source
from data_modules.stream.substitutes import Substitutes
from data_modules.stream.training_sequence import TrainingSequence
from lumos_pl.batch import PackedBatch, pack
from lumos_pl.errors import LumosError
from lumos_pl.layout import TokenLayout


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
