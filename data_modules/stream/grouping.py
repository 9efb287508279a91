"""Samples into batches of one bucket: those that share their latent shape, or all.

A batch is full when it has `batch_size` samples; with a budget of tokens, a sample goes to the fullest open batch that
has room for it, and where none has, the fullest of `OPEN_BATCHES` is full. What is left waits for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data_modules.stream.dealing import Window

NEARLY_FULL = 0.95  # of the budget of tokens
OPEN_BATCHES = 8  # of a bucket: with one, a budget of 64k tokens stays 7% unused on a mixed set; with 8, 1%


class PlannedSample(NamedTuple):
    """One appearance of a sample, by its place in its shard, in one epoch."""

    epoch: int
    shard: int
    place: int


class Group(NamedTuple):
    """A batch before its samples are written out, which those that are skipped need not be: epoch, shard and place."""

    samples: Sequence[Sequence[int]] | NDArray[np.int64]

    def planned(self) -> tuple[PlannedSample, ...]:
        listed = self.samples.tolist() if isinstance(self.samples, np.ndarray) else self.samples
        return tuple(PlannedSample(*sample) for sample in listed)


class Grouping(Protocol):
    """Takes windows, and gives the batches that are full by them."""

    def add(self, window: Window, buckets: NDArray[np.int64], tokens: NDArray[np.int64]) -> list[Group]:
        """The batches that a window completes, in the order in which they come to be.

        Args:
            buckets, tokens: of each of its samples; shape [n].
        """

    def pack(self) -> list[Group]:
        """The batches that what waits fills nearly, where it is packed anew; the rest goes on waiting."""

    def rest(self) -> list[Group]:
        """What waits, by bucket in the order of their first samples."""


class BySize:
    """Batches of so many samples."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: dict[int, NDArray[np.int64]] = {}  # by bucket: epoch, shard and place, shape [n, 3]

    def add(self, window: Window, buckets: NDArray[np.int64], tokens: NDArray[np.int64]) -> list[Group]:
        size = self._batch_size
        samples = np.stack([np.full_like(window.shards, window.epoch), window.shards, window.places], axis=1)
        found, first = np.unique(buckets, return_index=True)
        ready: list[tuple[int, Group]] = []  # the sample that completes a batch, and the batch
        for bucket in found[np.argsort(first)].tolist():
            own = np.flatnonzero(buckets == bucket)
            before = self._waiting.get(bucket, samples[:0])
            together = np.concatenate([before, samples[own]])
            n = len(together) // size
            completing = own[size - 1 - len(before) :: size].tolist()
            ready += [(at, Group(together[i * size : (i + 1) * size])) for i, at in enumerate(completing)]
            self._waiting[bucket] = together[n * size :]
        return [group for _, group in sorted(ready, key=lambda one: one[0])]

    def pack(self) -> list[Group]:
        return []  # of a bucket one batch at most is open

    def rest(self) -> list[Group]:
        return [Group(waiting) for waiting in self._waiting.values() if len(waiting)]


class _Open:
    __slots__ = ("lengths", "samples", "tokens")

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int]] = []
        self.lengths: list[int] = []
        self.tokens = 0

    def add(self, sample: tuple[int, int, int], length: int) -> None:
        self.samples.append(sample)
        self.lengths.append(length)
        self.tokens += length


class ByTokens:
    """Batches of at most so many samples and tokens."""

    def __init__(self, batch_size: int, max_tokens: int) -> None:
        self._batch_size, self._max_tokens = batch_size, max_tokens
        self._open: dict[int, list[_Open]] = {}

    def add(self, window: Window, buckets: NDArray[np.int64], tokens: NDArray[np.int64]) -> list[Group]:
        ready: list[Group] = []
        columns = window.shards.tolist(), window.places.tolist(), buckets.tolist(), tokens.tolist()
        for shard, place, bucket, length in zip(*columns, strict=True):
            opened = self._open.setdefault(bucket, [])
            room, batch, fullest = self._max_tokens - length, None, None
            for one in opened:  # of those that are as full the first
                if fullest is None or one.tokens > fullest.tokens:
                    fullest = one
                if one.tokens <= room and (batch is None or one.tokens > batch.tokens):
                    batch = one
            if batch is None:
                if fullest is not None and len(opened) >= OPEN_BATCHES:
                    opened.remove(fullest)
                    ready.append(Group(fullest.samples))
                batch = _Open()
                opened.append(batch)
            batch.add((window.epoch, shard, place), length)
            if len(batch.samples) == self._batch_size:
                opened.remove(batch)
                ready.append(Group(batch.samples))
        return ready

    def pack(self) -> list[Group]:
        ready: list[Group] = []
        for bucket, opened in self._open.items():
            waiting = [pair for batch in opened for pair in zip(batch.lengths, batch.samples, strict=True)]
            packed: list[_Open] = []
            for length, sample in sorted(waiting, key=lambda pair: -pair[0]):  # the longest first, where there is room
                fits = (one for one in packed if self._has_room(one, length))
                batch = next(fits, None) or _Open()
                if not batch.samples:
                    packed.append(batch)
                batch.add(sample, length)
            shortest = min((length for length, _ in waiting), default=0)
            full = [one for one in packed if not self._has_room(one, shortest) or self._is_nearly_full(one)]
            ready += [Group(one.samples) for one in full]
            self._open[bucket] = [one for one in packed if one not in full]
        return ready

    def _has_room(self, batch: _Open, length: int) -> bool:
        return len(batch.samples) < self._batch_size and batch.tokens + length <= self._max_tokens

    def _is_nearly_full(self, batch: _Open) -> bool:
        return batch.tokens >= NEARLY_FULL * self._max_tokens

    def rest(self) -> list[Group]:
        return [Group(batch.samples) for opened in self._open.values() for batch in opened]
