"""One shard that is being filled, in memory."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from itertools import pairwise

import numpy as np
import webdataset

from data_modules.shards.columns_writer import Known
from data_modules.shards.manifest import Shape
from data_modules.shards.sample import ShardSample, plain_fields, text_length
from data_modules.shards.sample_bytes import CODES_SUFFIX, JSON_SUFFIX
from data_modules.shards.table import ShardEntry


class ShardTar:
    """Samples in a tar, and what a manifest says of it.

    Args:
        tokenizer: fingerprint of the visual tokenizer.
        shapes: the latent shapes that occur, by their place; those that are new are added.

    Attributes:
        known: what else is known of the samples.
    """

    def __init__(self, tokenizer: str, shapes: dict[Shape, int]) -> None:
        self._tokenizer, self._shapes = tokenizer, shapes
        self._buffer = io.BytesIO()
        self._tar = webdataset.TarWriter(self._buffer, user="lumos", group="lumos", mtime=0)
        self._sample_shapes: list[int] = []
        self._text_lengths: list[int] = []
        self._ends: list[int] = []
        self.known = Known()

    @property
    def n_samples(self) -> int:
        return len(self._ends)

    @property
    def n_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, sample: ShardSample, text_ids: int = 0) -> None:
        """Append a sample, which has been checked; with the ids of its longest caption, where they are counted."""
        self.known.add(sample, text_ids)
        codes = io.BytesIO()
        np.lib.format.write_array(codes, np.ascontiguousarray(sample.codes), version=(1, 0), allow_pickle=False)
        content = plain_fields(sample) | {"tokenizer": self._tokenizer}
        text = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
        self._tar.write({"__key__": sample.key, CODES_SUFFIX[1:]: codes.getvalue(), JSON_SUFFIX[1:]: text})
        t, h, w = sample.codes.shape
        self._sample_shapes.append(self._shapes.setdefault((t, h, w), len(self._shapes)))
        self._text_lengths.append(text_length(sample))
        self._ends.append(self._tar.tarstream.offset)

    def close(self, file: str) -> tuple[bytes, ShardEntry]:
        """The whole tar, and the manifest's entry for it under the name `file`."""
        self._tar.close()
        data = self._buffer.getvalue()
        entry = ShardEntry(
            file=file,
            n_samples=self.n_samples,
            n_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            shapes=tuple(self._sample_shapes),
            text_lengths=tuple(self._text_lengths),
            ends=tuple(self._ends),
            checksums=tuple(zlib.crc32(data[start:end]) for start, end in pairwise((0, *self._ends))),
        )
        return data, entry

    def abandon(self) -> None:
        """Let go of it, unwritten: a tar that is collected open would write its end, and find no file."""
        self._tar.tarstream.close()
