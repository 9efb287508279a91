"""The order of an endless training stream, as a pure function of (manifest, seed, batching).

Nothing of the stream's state needs saving but how many micro-batches were consumed:

    shards of epoch 0, permuted        epoch 1, permuted anew       ...      drawn from (seed, epoch)
    3 0 4 1 2                          2 4 0 3 1
    a b a b a                          b a b a b                    dealt in turn to the streams a, b
      |
      stream a: windows of `shuffle_shards` shards of one epoch, the samples of a window permuted
                -> a bucket for each latent shape -> a batch whenever one is full

Micro-batch m of the run is batch m // G of stream m % G, for G streams. Neither ranks nor workers
appear in this, so any number of them can divide the same order (`data_modules.token_data`).
Samples left in a bucket at the end of an epoch wait there for the next one: none is dropped.
Planning reads the manifest only; skipping to the middle of an epoch opens no shard.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import NamedTuple

import torch

from data_modules.config import SourceConfig
from data_modules.manifest import Manifest, Shape
from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans

MAX_DEFAULT_STREAMS = 64
OPEN_BATCHES = 8  # of a bucket: with one, a budget of 64k tokens stays 7% unused on a mixed set; with 8, 1%


class PlannedSample(NamedTuple):
    """One appearance of a sample, by its place in its shard, in one epoch."""

    epoch: int
    shard: int
    place: int


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
    Raises:
        ConfigError: more streams than shards, or a sample that may exceed the token budget.
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
    ) -> None:
        self.manifest, self.config, self.kind, self.seed = manifest, config, kind, seed
        self.key = key or f"data.{kind}"
        n_shards = len(manifest.shards)
        self.n_streams = config.streams or 2 ** (min(n_shards, MAX_DEFAULT_STREAMS).bit_length() - 1)
        if self.n_streams > n_shards:
            raise ConfigError(
                "more streams than shards",
                where=f"{self.key}.streams",
                got=self.n_streams,
                expected=f"1 to {n_shards}",
                fix="lower it, or write more and smaller shards",
            )
        latent_frames = layout.latent_frames(config.frames)
        self.clip_shapes: list[Shape] = [(min(t, latent_frames), h, w) for t, h, w in manifest.shapes]
        # What a clip of each shape takes besides its text, with BOS and SEP.
        self._shape_tokens = [
            SequenceSpans(layout.prefix_length(prompt_tokens), *shape).length for shape in self.clip_shapes
        ]
        self._check_budget()

    def _check_budget(self) -> None:
        if self.config.max_tokens is None:
            return
        needed = max(
            self._shape_tokens[shape] + text
            for entry in self.manifest.shards
            for shape, text in zip(entry.shapes, entry.text_lengths, strict=True)
        )
        if needed > self.config.max_tokens:
            raise ConfigError(
                "a single sample may exceed the token budget",
                where=f"{self.key}.max_tokens",
                got=self.config.max_tokens,
                expected=f"{needed} or more",
                fix=f"raise it, or lower {self.key}.frames",
            )

    def tokens(self, sample: PlannedSample) -> int:
        """What a sample takes of a batch's budget, at the most."""
        entry = self.manifest.shards[sample.shard]
        return self._shape_tokens[entry.shapes[sample.place]] + entry.text_lengths[sample.place]

    def room(self, batch: PlannedBatch) -> float:
        """What a batch leaves of its budget, in tokens."""
        return (self.config.max_tokens or math.inf) - sum(map(self.tokens, batch.samples))

    def stand_ins(self, planned: PlannedSample, room: float) -> Iterator[PlannedSample]:
        """All samples that can take the place of one, in the order in which they are tried; see `substitutes`.

        Args:
            room: what the batch leaves of its budget, in tokens.
        """

        def shape_of(sample: PlannedSample) -> int:
            return self.manifest.shards[sample.shard].shapes[sample.place]

        shape, most = shape_of(planned), room + self.tokens(planned)
        alike = [clip == self.clip_shapes[shape] for clip in self.clip_shapes]
        shorter = [
            n <= self._shape_tokens[shape] and not like for n, like in zip(self._shape_tokens, alike, strict=True)
        ]
        for wanted in alike, shorter:
            for sample in self._following(planned):
                if wanted[shape_of(sample)] and self.tokens(sample) <= most:
                    yield sample

    def _following(self, planned: PlannedSample) -> Iterator[PlannedSample]:
        """All other samples: those behind it in its shard and around to it, then the next shards from its place on."""
        shards = self.manifest.shards
        for offset in range(len(shards)):
            shard = (planned.shard + offset) % len(shards)
            n_samples = shards[shard].n_samples
            for step in range(1 if offset == 0 else 0, n_samples):
                yield PlannedSample(planned.epoch, shard, (planned.place + step) % n_samples)

    def walk(self) -> PlanWalk:
        """A reader of the order; each has its own place in it."""
        return PlanWalk(self)

    def sequential(self) -> Iterator[PlannedBatch]:
        """Every sample once, in the manifest's order: the batches of a validation."""
        shards = enumerate(self.manifest.shards)
        samples = (PlannedSample(0, shard, place) for shard, entry in shards for place in range(entry.n_samples))
        return self._batches(0, samples)

    def stream(self, stream: int) -> Iterator[PlannedBatch]:
        """The endless batches of one stream."""
        return self._batches(stream, self._samples(stream))

    def _samples(self, stream: int) -> Iterator[PlannedSample]:
        n_shards, span = len(self.manifest.shards), self.config.shuffle_shards
        for epoch in count():
            order = torch.randperm(n_shards, generator=self._generator("shard_order", epoch)).tolist()
            # Dealing goes on where the last epoch stopped, so no stream falls behind.
            own = order[(stream - epoch * n_shards) % self.n_streams :: self.n_streams]
            for start in range(0, len(own), span):
                window = own[start : start + span]
                samples = [
                    PlannedSample(epoch, shard, place)
                    for shard in window
                    for place in range(self.manifest.shards[shard].n_samples)
                ]
                shuffling = self._generator("sample_order", epoch, window[0])
                yield from (samples[i] for i in torch.randperm(len(samples), generator=shuffling).tolist())

    def _generator(self, *names: str | int) -> torch.Generator:
        return generator(self.seed, "stream_plan", self.kind, *names)

    def _batches(self, stream: int, samples: Iterable[PlannedSample]) -> Iterator[PlannedBatch]:
        """Group samples by bucket; what is left over at the end comes last.

        A sample goes to the fullest open batch that has room for it. Where none has, the fullest is full.
        """
        batch_size, limit, shards = self.config.batch_size, self.config.max_tokens or math.inf, self.manifest.shards
        buckets: dict[Shape | None, list[_OpenBatch]] = defaultdict(list)
        for sample in samples:
            entry = shards[sample.shard]
            shape = entry.shapes[sample.place]
            length = self._shape_tokens[shape] + entry.text_lengths[sample.place]
            opened = buckets[self.clip_shapes[shape] if self.config.bucket else None]
            fullest = sorted(opened, key=lambda batch: -batch.tokens)
            batch = next((batch for batch in fullest if batch.tokens + length <= limit), None)
            if batch is None:
                if len(opened) == OPEN_BATCHES:
                    opened.remove(fullest[0])
                    yield PlannedBatch(self.kind, stream, tuple(fullest[0].samples))
                batch = _OpenBatch()
                opened.append(batch)
            batch.samples.append(sample)
            batch.tokens += length
            if len(batch.samples) == batch_size:
                opened.remove(batch)
                yield PlannedBatch(self.kind, stream, tuple(batch.samples))
        for opened in buckets.values():
            for batch in opened:
                yield PlannedBatch(self.kind, stream, tuple(batch.samples))


@dataclass(eq=False)
class _OpenBatch:
    samples: list[PlannedSample] = field(default_factory=list)
    tokens: int = 0


class PlanWalk:
    """Goes through a plan's micro-batches; planning only the streams it is asked for."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._streams: dict[int, tuple[Iterator[PlannedBatch], int]] = {}

    def batch(self, index: int) -> PlannedBatch:
        """Micro-batch `index` of the global order; call with ascending indices."""
        number, stream = divmod(index, self._plan.n_streams)
        batches, position = self._streams.get(stream) or (self._plan.stream(stream), 0)
        self._streams[stream] = batches, number + 1
        return next(islice(batches, number - position, None))
