"""The shards of one kind, or of one source of a mixture, with their plan and what makes sequences of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from data_modules.readers import Shards
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import BadSample
from data_modules.stream.plan import PlannedSample, StreamPlan
from data_modules.stream.training_sequence import SequenceBuilder, TrainingSequence, cut
from lumos_pl.errors import located


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
