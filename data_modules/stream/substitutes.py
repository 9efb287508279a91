"""What takes the place of samples that cannot be used: others, by a rule that asks the manifest and the damage alone.

    shard 3     a  b  X  d                 X cannot be used: d stands in for it, or else a, b, ...
    shard 4     e  f  g  h                 nothing of shard 3 can be used: g stands in for X, or else h, e, f, ...

Whatever a worker happened to read before, a batch holds the same samples: the order of all others is what it was, every
batch is as large, no rank's is empty, and a resumed training goes on from its step alone. A stand-in has the latent
shape of what it stands in for, so that a batch takes neither more memory nor another kernel; only where the data set
has none of it left, another that is no longer. It appears once more by that, under a name of its own, so that what is
drawn for it is drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from data_modules.shards.reading import is_damage, reason
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import BadSample
from data_modules.stream.left_out import LeftOut, TooManyLeftOut, count_samples
from data_modules.stream.plan import PlannedBatch, PlannedSample
from data_modules.stream.training_sequence import TrainingSequence
from lumos_pl.errors import DataError

if TYPE_CHECKING:
    from data_modules.stream.source import Source

Shard = Sequence[ShardSample | BadSample] | BadSample  # the latter where nothing of it can be used
ReadShard = Callable[[int], Shard]


class Substitutes:
    """Sequences of planned batches in one worker, with stand-ins for what cannot be used.

    Args:
        most: samples that may be left out.
    """

    def __init__(self, source: Source, most: int) -> None:
        self._source, self._most = source, most
        self._found: dict[LeftOut, None] = {}  # by this worker, in the order of finding
        self._unusable: dict[int, BadSample] = {}  # shards, which need not be read again
        self._read_other = self.reader(2)

    def reader(self, keep: int) -> ReadShard:
        """Reads shards, and keeps the last few of them."""
        return lru_cache(maxsize=keep)(self._read)

    def sequences(self, batch: PlannedBatch, read: ReadShard) -> tuple[list[TrainingSequence], tuple[LeftOut, ...]]:
        """The sequences of a batch, and what could not be used for it.

        Args:
            read: the shards of the batch; stand-ins are read apart, so that they push none of its stream's out.
        Raises:
            TooManyLeftOut: this worker alone found more than may be left out, or nothing can take a place.
        """
        left_out: list[LeftOut] = []
        room = self._source.plan.room(batch)
        sequences = []
        for planned in batch.samples:
            found = self._try(planned, read)
            if isinstance(found, LeftOut):
                self._note(found, left_out)
                stand_in, found = self._stand_in(planned, room, left_out)
                room += self._source.plan.tokens(planned) - self._source.plan.tokens(stand_in)
            sequences.append(found)
        return sequences, tuple(left_out)

    def _stand_in(
        self, planned: PlannedSample, room: float, left_out: list[LeftOut]
    ) -> tuple[PlannedSample, TrainingSequence]:
        for candidate in self._source.plan.stand_ins(planned, room):
            found = self._try(candidate, self._read_other, instead_of=planned)
            if not isinstance(found, LeftOut):
                return candidate, found
            self._note(found, left_out)
        raise TooManyLeftOut(
            "no sample can take the place of one that cannot be used",
            file=self._source.shards.file(planned.shard),
            where=f"sample {planned.place + 1}",
            fix="repair the shards, or copy them anew",
        ).with_list(self._found)

    def _note(self, found: LeftOut, left_out: list[LeftOut]) -> None:
        if found not in left_out:
            left_out.append(found)
        if found in self._found:
            return
        self._found[found] = None
        total = count_samples(self._found)
        if total > self._most:
            raise TooManyLeftOut(
                "too many samples cannot be used",
                file=found.shard,
                where=found.reason,
                got=total,
                expected=f"at most {self._most} (data.max_bad_samples)",
                fix="repair the shards, or copy them anew",
            ).with_list(self._found)

    def _try(
        self, planned: PlannedSample, read: ReadShard, *, instead_of: PlannedSample | None = None
    ) -> TrainingSequence | LeftOut:
        shard = read(planned.shard)
        sample = shard if isinstance(shard, BadSample) else shard[planned.place]
        if isinstance(sample, ShardSample):
            try:
                return self._source.training_sequence(planned, sample, instead_of=instead_of)
            except DataError as error:
                sample = BadSample(key=sample.key, reason=reason(error))
        entry = self._source.shards.manifest.shards[planned.shard]
        return LeftOut(
            shard=str(self._source.shards.file(planned.shard)),
            sha256=entry.sha256,
            place=None if shard is sample else planned.place,
            key=sample.key,
            samples=entry.n_samples if shard is sample else 1,
            reason=sample.reason,
        )

    def _read(self, shard: int) -> Shard:
        if shard not in self._unusable:
            try:
                return self._source.read_each(shard)
            except DataError as error:
                if not is_damage(error):
                    raise
                self._unusable[shard] = BadSample(key=None, reason=reason(error))
        return self._unusable[shard]
