"""Which samples each stream takes in an epoch, in which order: shards are dealt, and windows of them shuffled.

    whole shards in turn, where all have as many samples (the last may have fewer)

        shards of epoch 0, permuted        epoch 1, permuted anew
        3 0 4 1 2                          2 4 0 3 1
        a b a b a                          b a b a b

    equal parts, where they have not: the permuted shards laid in a line, which is cut in as many parts as streams

        33333333 0 44 1 22                 222 4 000000 3 1
        aaaaaaa|bbbbbbb                    aaaaaa|bbbbbb

Streams take turns, so what they have to take must be as much; a shard that is cut is read by each stream that has a
part of it. With a budget of tokens a batch ends by tokens, and the line is measured in these, unless a part would be
shorter than a sample; else in samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.shards.table import ShardTable

Indices = NDArray[np.int64]
Draw = Callable[..., torch.Generator]  # from names, as of `seeding.generator`


class Window(NamedTuple):
    """Samples of one epoch in the order in which a stream takes them; all arrays of shape [n]."""

    epoch: int
    shards: Indices
    places: Indices


class Piece(NamedTuple):
    """What a stream takes of a shard."""

    shard: int
    places: Indices


def are_equal(counts: Indices) -> bool:
    """Whether all shards have as many samples, but for the last, which may have fewer."""
    return bool((counts[:-1] == counts[0]).all() and counts[-1] <= counts[0])


def windows(pieces: Sequence[Piece], span: int, epoch: int, draw: Draw, *names: int) -> Iterator[Window]:
    """The samples of `span` pieces at a time, shuffled."""
    for start in range(0, len(pieces), span):
        window = pieces[start : start + span]
        places = np.concatenate([piece.places for piece in window])
        shards = np.repeat([piece.shard for piece in window], [len(piece.places) for piece in window])
        generator = draw("sample_order", epoch, window[0].shard, *names)
        order = torch.randperm(len(places), generator=generator).numpy()
        yield Window(epoch, shards[order], places[order])


def in_turn(table: ShardTable, stream: int, n_streams: int, span: int, draw: Draw) -> Iterator[Window]:
    """The endless windows of a stream that is dealt whole shards."""
    n_shards = len(table)
    for epoch in count():
        order = torch.randperm(n_shards, generator=draw("shard_order", epoch)).numpy()
        # Dealing goes on where the last epoch stopped, so no stream falls behind.
        own = order[(stream - epoch * n_shards) % n_streams :: n_streams].tolist()
        yield from windows(_Pieces(table, own), span, epoch, draw)


class _Pieces(Sequence[Piece]):
    """Whole shards, whose samples are listed as they are asked for."""

    def __init__(self, table: ShardTable, shards: Sequence[int]) -> None:
        self._table, self._shards = table, shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int | slice) -> Piece | list[Piece]:  # type: ignore[override]
        if isinstance(index, slice):
            return [Piece(shard, self._table.of_shard(shard).places) for shard in self._shards[index]]
        return Piece(self._shards[index], self._table.of_shard(self._shards[index]).places)


class EqualParts:
    """Cuts the line of an epoch's shards.

    Args:
        weights: of each shard, all of its samples together; shape [n_shards].
        sample_weights: given a shard, those of its selected samples.
    """

    def __init__(
        self, table: ShardTable, n_streams: int, weights: Indices, sample_weights: Callable[[int], Indices]
    ) -> None:
        self._table, self._n_streams = table, n_streams
        self._weights, self._sample_weights = weights, sample_weights
        self._total = int(weights.sum())

    def windows(self, stream: int, span: int, draw: Draw) -> Iterator[Window]:
        """The endless windows of a stream."""
        for epoch in count():
            order = torch.randperm(len(self._table), generator=draw("shard_order", epoch)).numpy()
            yield from windows(self._pieces(stream, epoch, order), span, epoch, draw, stream)

    def _pieces(self, stream: int, epoch: int, order: Indices) -> list[Piece]:
        first, last = self._bounds(stream, epoch)
        weights = self._weights[order]
        ends = np.cumsum(weights)
        begin, end = (int(np.searchsorted(ends, bound, side="right")) for bound in (first, last - 1))
        pieces = []
        for number in range(begin, min(end + 1, len(order))) if first < last else ():
            shard, start = int(order[number]), int(ends[number] - weights[number])
            places = self._table.of_shard(shard).places
            if start < first or ends[number] > last:  # a sample is that stream's in whose part it begins
                each = self._sample_weights(shard)
                low, high = np.searchsorted(np.cumsum(each) - each + start, [first, last])
                places = places[low:high]
            if len(places):
                pieces.append(Piece(shard, places))
        return pieces

    def _bounds(self, stream: int, epoch: int) -> tuple[int, int]:
        """Where a stream's part of an epoch's line begins and ends.

        Through any epoch the parts of two streams together differ by one at most.
        """
        ends = np.arange(stream + 1)
        sizes = (ends + (epoch + 1) * self._total) // self._n_streams - (ends + epoch * self._total) // self._n_streams
        return int(sizes[:-1].sum()), int(sizes.sum())
