"""Which samples of some shards a run takes: those that `data.where` asks for and whose text fits.

Both are known before the first step. What the condition asks for stands in the columns of the shards. Whether a text
fits follows from the manifest for nearly all: a text has no more ids than bytes, or as many times more as the text
tokenizer's own rules can make of them, see `text_growth`. Where that does not tell, and no text tokenizer of the same
fingerprint counted the ids when the shards were written, the few samples in doubt are read.

    tokens of a clip with its text      |------ fits ------|-- in doubt: is counted --|
    at the most, by the bytes                            limit
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.config import SourceConfig
from data_modules.readers import Shards
from data_modules.shards.manifest import Manifest
from data_modules.shards.metadata import Columns
from data_modules.shards.sample import ShardSample
from data_modules.shards.where import Where
from data_modules.stream.training_sequence import SequenceBuilder, cut
from lumos_pl.errors import ConfigError, DataError, did_you_mean, located
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.text import growth_of
from lumos_pl.tokenizers.text_growth import Growth

TooLong = Literal["refuse", "leave_out"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a run takes of some shards.

    Args:
        selected: of every sample, in the order of the manifest; None: all are.
        text_tokens: of every sample, the ids that its text has with the prompt, at the most; None: the manifest's bound
            is good enough.
        told: what is left out, in words.
    """

    selected: NDArray[np.bool_] | None = None
    text_tokens: NDArray[np.integer] | None = None
    told: tuple[str, ...] = ()

    def of(self, manifest: Manifest) -> Manifest:
        """What a plan is to know of the shards."""
        if self.text_tokens is not None:
            table = manifest.table.with_text_lengths(self.text_tokens)
            manifest = replace(manifest, shards=table).identified(manifest.fingerprint)
        return manifest if self.selected is None else manifest.selecting(self.selected)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How samples are chosen.

    Args:
        config: batching of the samples.
        key: of these settings, for messages.
        sequences: makes the sequences whose length counts.
        where: the condition; None: none.
        too_long: what becomes of a sample that is longer than the model's context, or than a micro-batch.
        skips_damage: damaged samples are left out when they are drawn, and no matter here.
    """

    config: SourceConfig
    key: str
    sequences: SequenceBuilder
    where: Where | None = None
    too_long: TooLong = "refuse"
    skips_damage: bool = False

    @property
    def limit(self) -> tuple[int | None, str]:
        """Tokens that a sample may have, and the setting that says so."""
        limits = (self.sequences.max_length, "model.max_length"), (self.config.max_tokens, f"{self.key}.max_tokens")
        return min(((most, key) for most, key in limits if most is not None), default=(None, ""))

    def of(self, shards: Shards) -> Chosen:
        """What is taken of some shards.

        Raises:
            ConfigError: the condition, or a caption, names what is not there.
            DataError: nothing is left, or a text does not fit and is not to be left out.
        """
        choosing = _Choosing(self, shards)
        choosing.check_captions()
        selected = choosing.selected()
        return Chosen(selected=selected, text_tokens=choosing.text_tokens(), told=tuple(choosing.told))


class _Choosing:
    def __init__(self, choice: Choice, shards: Shards) -> None:
        self._choice, self._shards = choice, shards
        self._exact: dict[int, int] = {}
        self.told: list[str] = []

    @cached_property
    def _columns(self) -> Columns:
        """Of the shards; none where they have no such file, as all of before."""
        n_samples = self._shards.manifest.n_samples
        read = getattr(self._shards, "columns", None)  # which shards of somebody's own need not have
        columns: Columns = Columns(n_samples=n_samples) if read is None else read()
        return columns

    def check_captions(self) -> None:
        """Raise ConfigError for a name by which no sample has a caption."""
        for name in self._choice.sequences.captions:
            if name not in self._columns.captions:
                there = ", ".join(sorted(self._columns.captions))
                raise ConfigError(
                    "no caption of this name",
                    file=self._shards.folder,
                    where="data.captions",
                    got=repr(name),
                    expected=f"one of {there}" if there else "none: the samples have one caption, without a name",
                    fix=did_you_mean(name, self._columns.captions),
                )

    def selected(self) -> NDArray[np.bool_] | None:
        n_samples = self._shards.manifest.n_samples
        where, selected = self._choice.where, np.ones(n_samples, np.bool_)
        if where is not None:
            where.check_columns(self._columns.columns, file=self._shards.folder)
            selected = self._columns.select(where)
            self._tell(n_samples - int(selected.sum()), f"{where.name}: {where.text}")
            self._check_left(selected, where.name, where.text)
        too_long = [number for number in self._in_doubt(selected) if self._is_too_long(number)]
        selected[too_long] = False
        if too_long:
            most, key = self._choice.limit
            self._tell(len(too_long), f"data.too_long: more than {most} tokens ({key})")
            self._check_left(selected, "data.too_long", "leave_out")
        return None if selected.all() else selected

    def _tell(self, n_left_out: int, why: str) -> None:
        self.told.append(f"{n_left_out} of {self._shards.manifest.n_samples} samples left out | {why}")

    def _check_left(self, selected: NDArray[np.bool_], where: str, what: str) -> None:
        if not selected.any():
            got = f"{what}, of {len(selected)} samples"
            raise DataError("no sample is left", file=self._shards.folder, where=where, got=got, expected="one or more")

    # -- what is too long ------------------------------------------------------------------------

    def text_tokens(self) -> NDArray[np.integer] | None:
        """See `Chosen`: where a batch has a budget, and ids were counted, when the shards were written or just now."""
        budget, most = self._choice.config.max_tokens, self._choice.limit[0]
        if budget is None or most is None:
            return None
        bounds, exact = self._bounds, self._exact
        longer = {number for number in exact if exact[number] > bounds[number]}
        if not self._is_counted and not longer and not any(bounds[number] > budget for number in exact):
            return None
        clips = self._clip_tokens(0)[self._shapes]
        tokens: NDArray[np.integer] = bounds - clips
        for number in longer.union(number for number in exact if bounds[number] > most):
            tokens[number] = exact[number] - clips[number]
        return tokens

    def _in_doubt(self, selected: NDArray[np.bool_]) -> NDArray[np.integer]:
        """The numbers of the selected samples that may be too long."""
        most, _ = self._choice.limit
        if most is None:
            return np.empty(0, np.int64)
        doubtful = np.flatnonzero((self._sure_bounds > most) & selected)
        if self._choice.too_long == "refuse":  # of the settings, which are refused elsewhere, and no matter of texts
            doubtful = doubtful[self._clip_tokens(None)[self._shapes[doubtful]] <= most]
        return doubtful

    @property
    def _is_counted(self) -> bool:
        """Whether the run's own text tokenizer counted the ids when the shards were written."""
        tokenizer = self._choice.sequences.tokenizer
        return tokenizer is not None and self._columns.text_tokenizer == tokenizer.fingerprint

    @cached_property
    def _bounds(self) -> NDArray[np.integer]:
        """Tokens of each sample, as batches are planned: of a text as many as bytes, where nothing counted them."""
        sequences, lengths = self._choice.sequences, self._lengths
        if self._is_counted and self._columns.text_ids is not None:
            lengths = self._columns.text_ids.astype(np.int64)
        prompt = 0 if sequences.tokenizer is None else sequences.prompt.max_bytes
        bounds: NDArray[np.integer] = self._clip_tokens(prompt)[self._shapes] + lengths
        return bounds

    @property
    def _sure_bounds(self) -> NDArray[np.integer] | NDArray[np.floating]:
        """Tokens of each sample at the most, as far as is known without its text; infinitely many: nothing is."""
        tokenizer = self._choice.sequences.tokenizer
        if tokenizer is None:
            return self._bounds
        prompt, growth = self._choice.sequences.prompt, growth_of(tokenizer)
        bounds = self._bounds + (prompt.most_ids(tokenizer) - prompt.max_bytes)
        if self._is_counted or growth == Growth():
            return bounds
        return bounds + (growth.per_byte - 1) * self._lengths + growth.extra

    @cached_property
    def _lengths(self) -> NDArray[np.integer]:
        """Of the texts in bytes."""
        return np.concatenate([rows.text_lengths.astype(np.int64) for _, rows in self._shards.manifest.table.runs()])

    @cached_property
    def _shapes(self) -> NDArray[np.integer]:
        return np.concatenate([rows.shapes.astype(np.int64) for _, rows in self._shards.manifest.table.runs()])

    def _clip_tokens(self, n_text: int | None) -> NDArray[np.integer]:
        """Of a clip of each shape, with so many ids of text."""
        layout = self._choice.sequences.layout
        prefix, most = layout.prefix_length(n_text), layout.latent_frames(self._choice.config.frames)
        shapes = self._shards.manifest.shapes
        return np.array([SequenceSpans(prefix, min(t, most), h, w).length for t, h, w in shapes])

    @cached_property
    def _ends(self) -> NDArray[np.integer]:
        """Of the samples of each shard, among all."""
        return np.cumsum(self._shards.manifest.table.n_samples)

    def _is_too_long(self, number: int) -> bool:
        """Whether a sample in doubt is; what fits is noted."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        place = number - (int(self._ends[shard - 1]) if shard else 0)
        sample = self._sample(shard, place)
        if sample is None:
            return False
        most, key = self._choice.limit
        assert most is not None
        with located(self._shards.file(shard), f"sample {sample.key}"):
            n_tokens = self._choice.sequences.longest(sample)
            if n_tokens <= most:
                self._exact[number] = n_tokens
                return False
            if self._choice.too_long == "leave_out":
                return True
            n_text = n_tokens - int(self._clip_tokens(None)[self._shapes[number]])
            raise DataError(
                "a text that does not fit",
                where="data.too_long",
                got=f"{n_tokens} tokens, {n_text} of them for the text",
                expected=f"at most {most} ({key})",
                fix="shorten it, or data.too_long=leave_out for all such samples",
            )

    def _sample(self, shard: int, place: int) -> ShardSample | None:
        """One sample, cut as it is trained on; None: damage keeps it from being read."""
        if shard != self._read[0]:
            self._read = shard, self._samples(shard)
        return self._read[1][place]

    _read: tuple[int, list[ShardSample | None]] = (-1, [])

    def _samples(self, shard: int) -> list[ShardSample | None]:
        read = self._shards.read
        if self._choice.skips_damage:
            read = getattr(self._shards, "read_each", read)
        frames, layout = self._choice.config.frames, self._choice.sequences.layout
        try:
            samples = read(shard)
        except DataError:
            if not self._choice.skips_damage:
                raise
            return [None] * int(self._shards.manifest.table.n_samples[shard])
        return [cut(one, frames, layout) if isinstance(one, ShardSample) else None for one in samples]
