"""The order of an endless training stream, as a pure function of (manifest, seed, batching).

Nothing of the stream's state needs saving but how many micro-batches were consumed:

    shards, permuted anew in each epoch by (seed, epoch), and dealt to the streams (`dealing`)
      |
      a stream: windows of `shuffle_shards` shards of one epoch, the samples of a window permuted
                -> a bucket for each latent shape -> a batch whenever one is full (`grouping`)

Micro-batch m of the run is batch m // G of stream m % G, for G streams. Neither ranks nor workers
appear in this, so any number of them can divide the same order (`data_modules.token_data`).
Samples left in a bucket at the end of an epoch wait there for the next one: none is dropped.
Planning reads the manifest only; skipping to the middle of an epoch opens no shard.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.config import SourceConfig
from data_modules.shards.manifest import Manifest, Shape
from data_modules.shards.table import Rows
from data_modules.stream.dealing import EqualParts, Indices, Window, are_equal, in_turn
from data_modules.stream.grouping import OPEN_BATCHES, BySize, ByTokens, Group, Grouping, PlannedSample
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans

__all__ = ["OPEN_BATCHES", "PlanWalk", "PlannedBatch", "PlannedSample", "StreamPlan"]

MAX_DEFAULT_STREAMS = 64
EQUAL_PARTS = "equal_parts"
EQUAL_SHARES = "equal_shares"  # the same where some samples are not selected, or are longer than a part


class PlannedBatch(NamedTuple):
    kind: str
    stream: int
    samples: tuple[PlannedSample, ...]
    counts: bool = True  # see `PackedBatch`


class StreamPlan:
    """The batches of one kind of data.

    Args:
        kind: `image` or `video`, or the name of a mixture's source; those of one run are shuffled independently.
        prompt_tokens: ids at most that the prompt adds to a text's own.
        key: of the settings, for messages; by default `data.` and the kind.
        selected: which samples are taken, in the manifest's order, shape [manifest.n_samples]; None: those that the
            manifest selects.
    Attributes:
        n_samples: how many samples an epoch has.
        dealing: how shards are dealt; None: whole ones in turn, as before there was another way. A run keeps to the
            way that it was begun with.
    Raises:
        ConfigError: more streams than shards, or a sample that may exceed the token budget.
        DataError: no sample is selected.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: SourceConfig,
        layout: TokenLayout,
        *,
        kind: str,
        seed: int,
        prompt_tokens: int = 0,
        key: str | None = None,
        selected: NDArray[np.bool_] | None = None,
    ) -> None:
        self.manifest = manifest if selected is None else manifest.selecting(selected)
        self.config, self.kind, self.seed = config, kind, seed
        self.key = key or f"data.{kind}"
        self._table = self.manifest.table
        n_shards = len(self._table)
        self.n_streams = config.streams or 2 ** (min(n_shards, MAX_DEFAULT_STREAMS).bit_length() - 1)
        if self.n_streams > n_shards:
            raise ConfigError(
                "more streams than shards",
                where=f"{self.key}.streams",
                got=self.n_streams,
                expected=f"1 to {n_shards}",
                fix="lower it, or write more and smaller shards",
            )
        counts = self._table.n_selected()
        self.n_samples = int(counts.sum())
        if not self.n_samples:
            got, fix = f"0 of {manifest.n_samples} samples", "take more of them, or give other data"
            raise DataError("no sample is left to take", where=self.key, got=got, fix=fix)
        self._counts = counts
        latent_frames = layout.latent_frames(config.frames)
        self.clip_shapes: list[Shape] = [(min(t, latent_frames), h, w) for t, h, w in manifest.shapes]
        self._buckets = np.array([self.clip_shapes.index(shape) for shape in self.clip_shapes], np.int64)
        # What a clip of each shape takes besides its text, with BOS and SEP.
        self._shape_tokens = np.array(
            [SequenceSpans(layout.prefix_length(prompt_tokens), *shape).length for shape in self.clip_shapes], np.int64
        )
        self._parts_in_tokens = False
        if config.max_tokens is not None:
            longest, total = self._longest_and_total()
            self._check_budget(longest, config.max_tokens)
            # In a shorter part no sample may begin, in any epoch: its stream would plan on for ever.
            self._parts_in_tokens = total // self.n_streams >= longest
        self.dealing: str | None = None
        if not are_equal(counts):
            fits_parts = self._parts_in_tokens or config.max_tokens is None
            self.dealing = EQUAL_PARTS if fits_parts and not self._table.selects else EQUAL_SHARES

    def deal_as(self, recorded: object) -> None:
        """Go on as a run was begun.

        Args:
            recorded: what it says of `dealing`; nothing, where it was begun before there was another way.
        """
        self.dealing = recorded if recorded in (EQUAL_PARTS, EQUAL_SHARES) else None
        vars(self).pop("_equal_parts", None)

    def _longest_and_total(self) -> tuple[int, int]:
        """Tokens of the longest selected sample, and of all of them."""
        taken = [self._tokens_of(rows)[rows.selected] for _, rows in self._table.runs()]
        return max(int(tokens.max(initial=0)) for tokens in taken), sum(int(tokens.sum()) for tokens in taken)

    def _check_budget(self, needed: int, max_tokens: int) -> None:
        if needed > max_tokens:
            raise ConfigError(
                "a single sample may exceed the token budget",
                where=f"{self.key}.max_tokens",
                got=max_tokens,
                expected=f"{needed} or more",
                fix=f"raise it, or lower {self.key}.frames",
            )

    def _tokens_of(self, rows: Rows) -> Indices:
        """What each of some samples takes of a batch's budget, at the most."""
        tokens: Indices = self._shape_tokens[rows.shapes] + rows.text_lengths.astype(np.int64)
        return tokens

    def tokens(self, sample: PlannedSample) -> int:
        """What a sample takes of a batch's budget, at the most."""
        return int(self._tokens_of(self._table.of_shard(sample.shard).between(sample.place, sample.place + 1))[0])

    def room(self, batch: PlannedBatch) -> float:
        """What a batch leaves of its budget, in tokens."""
        return (self.config.max_tokens or math.inf) - sum(map(self.tokens, batch.samples))

    def stand_ins(self, planned: PlannedSample, room: float) -> Iterator[PlannedSample]:
        """All samples that can take the place of one, in the order in which they are tried; see `substitutes`.

        Args:
            room: what the batch leaves of its budget, in tokens.
        """

        shape = int(self._table.of_shard(planned.shard).shapes[planned.place])
        most = room + self.tokens(planned)
        alike = self._buckets == self._buckets[shape]
        shorter = (self._shape_tokens <= self._shape_tokens[shape]) & ~alike
        n_shards = len(self._table)
        for wanted in alike, shorter:
            for offset in range(n_shards):
                shard = (planned.shard + offset) % n_shards
                rows = self._table.of_shard(shard)
                # Those behind it in its shard and around to it, then the next shards from its place on.
                order = (planned.place + np.arange(offset == 0, len(rows))) % len(rows)
                fit = wanted[rows.shapes] & (self._tokens_of(rows) <= most) & rows.selected
                yield from (PlannedSample(planned.epoch, shard, place) for place in order[fit[order]].tolist())

    def walk(self) -> PlanWalk:
        """A reader of the order; each has its own place in it."""
        return PlanWalk(self)

    def sequential(self) -> Iterator[PlannedBatch]:
        """Every sample once, in the manifest's order: the batches of a validation."""
        places = ((shard, self._table.of_shard(shard).places) for shard in range(len(self._table)))
        order = (Window(0, np.full_like(each, shard), each) for shard, each in places)
        return PlannedBatches(self, 0, order)

    def stream(self, stream: int) -> PlannedBatches:
        """The endless batches of one stream."""
        span = self.config.shuffle_shards
        if self.dealing is None:
            return PlannedBatches(self, stream, in_turn(self._table, stream, self.n_streams, span, self._draw))
        return PlannedBatches(self, stream, self._equal_parts.windows(stream, span, self._draw))

    @cached_property
    def _equal_parts(self) -> EqualParts:
        weights = self._counts
        if self._measures_tokens:
            parts = ((shards, self._weights_of(rows)) for shards, rows in self._table.runs())
            weights = np.concatenate([self._table.sums(*part) for part in parts])
        return EqualParts(self._table, self.n_streams, weights, self._sample_weights)

    @property
    def _measures_tokens(self) -> bool:
        """Whether a part is as many tokens as another; else as many samples."""
        return self._parts_in_tokens if self.dealing == EQUAL_SHARES else self.config.max_tokens is not None

    def _weights_of(self, rows: Rows) -> Indices:
        """What each of some samples takes of a part: tokens, or places. Of those that are not selected, nothing."""
        weights: Indices = rows.selected * (self._tokens_of(rows) if self._measures_tokens else 1)
        return weights

    def _sample_weights(self, shard: int) -> Indices:
        rows = self._table.of_shard(shard)
        # `EQUAL_PARTS` lists those that are not selected too, which makes parts unequal: runs begun so go on so.
        return self._weights_of(rows)[rows.selected] if self.dealing == EQUAL_SHARES else self._weights_of(rows)

    def _draw(self, *names: str | int) -> torch.Generator:
        return generator(self.seed, "stream_plan", self.kind, *names)

    def grouping(self) -> Grouping:
        """What makes batches of samples, with nothing in it yet."""
        batch_size, limit = self.config.batch_size, self.config.max_tokens
        return BySize(batch_size) if limit is None else ByTokens(batch_size, limit)

    def look_up(self, window: Window) -> tuple[Indices, Indices]:
        """Bucket and tokens of each sample of a window."""
        shapes, lengths = self._table.look_up(window.shards, window.places)
        buckets = self._buckets[shapes] if self.config.bucket else np.zeros(len(shapes), np.int64)
        return buckets, self._shape_tokens[shapes] + lengths.astype(np.int64)


class PlannedBatches(Iterator[PlannedBatch]):
    """The batches of some windows; what is left over at the end comes last."""

    def __init__(self, plan: StreamPlan, stream: int, windows: Iterator[Window]) -> None:
        self._plan, self._stream, self._windows = plan, stream, windows
        self._grouping = plan.grouping()
        self._ready: deque[Group] = deque()
        self._epoch, self._ended = 0, False

    def skip(self, n: int) -> None:
        """Pass over the next batches."""
        while n and self._fill():
            passed = min(n, len(self._ready))
            for _ in range(passed):
                self._ready.popleft()
            n -= passed

    def __next__(self) -> PlannedBatch:
        if not self._fill():
            raise StopIteration
        return PlannedBatch(self._plan.kind, self._stream, self._ready.popleft().planned())

    def _fill(self) -> bool:
        """Plan on until a batch is ready; False: there are no more."""
        while not (self._ready or self._ended):
            window = next(self._windows, None)
            if window is None:
                self._ended = True
                self._ready.extend(self._grouping.rest())
                continue
            if window.epoch > self._epoch and self._plan.dealing is not None:
                self._ready.extend(self._grouping.pack())  # so that fewer samples wait for another epoch
            self._epoch = window.epoch
            self._ready.extend(self._grouping.add(window, *self._plan.look_up(window)))
        return bool(self._ready)


class PlanWalk:
    """Goes through a plan's micro-batches; planning only the streams it is asked for."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._streams: dict[int, tuple[PlannedBatches, int]] = {}

    def batch(self, index: int) -> PlannedBatch:
        """Micro-batch `index` of the global order; call with ascending indices."""
        number, stream = divmod(index, self._plan.n_streams)
        batches, position = self._streams.get(stream) or (self._plan.stream(stream), 0)
        self._streams[stream] = batches, number + 1
        batches.skip(number - position)
        return next(batches)
