"""Writing shard folders: see `shards` for what is in them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from data_modules.shards.columns_writer import ColumnsWriter, longest_caption
from data_modules.shards.key_index import IN_MEMORY, KeyIndex
from data_modules.shards.manifest import MANIFEST_FILE, Manifest, Shape
from data_modules.shards.manifest_file import MAX_CODEBOOK_SIZE, MAX_FILE_BYTES, SideFile
from data_modules.shards.metadata import COLUMNS_FILE
from data_modules.shards.sample import ShardSample, check_sample
from data_modules.shards.sample_rows import ROWS_FILE
from data_modules.shards.table import ROW, Rows, ShardTable
from data_modules.shards.tar import ShardTar
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import make_folder, naming, write_new
from lumos_pl.machinery.own_files import digest_of, partial_of, remove_partials
from lumos_pl.settings.ranges import between, optional
from lumos_pl.tokenizers.text import TextTokenizer

IMAGES, VIDEOS = KIND_FOLDERS = "images", "videos"  # folders of one data set: one latent frame, or more
FEWEST_OF_A_SHARD, MOST_OF_A_SHARD = 64, 4096
WANTED_SHARDS = 1024

_SHARD = re.compile(r"shard-[0-9]{6,}\.tar")


def default_shard_size(n_samples: int) -> int:
    """How many samples a shard has by default, in a data set of so many: a power of two that makes about a thousand.

    Below 65,536 samples it is 64, since streams, validation shares and the order want shards enough; above two million
    it is 4,096, since whoever reads holds some shards in memory.
    """
    wanted = 1 << (max(1, -(-n_samples // WANTED_SHARDS)) - 1).bit_length()
    return min(max(wanted, FEWEST_OF_A_SHARD), MOST_OF_A_SHARD)


def remove_shards(folder: Path) -> None:
    """Remove the shards that a manifest of ours vouches for, as far as they are as it says, and then the manifest."""
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = Manifest.load(folder)
    files = manifest.files()
    for name, digest in zip(manifest.table.names(), manifest.table.digests.tolist(), strict=True):
        if digest_of(folder / name) == digest.decode():
            (folder / name).unlink()
    if manifest.metadata is not None and digest_of(folder / COLUMNS_FILE) == manifest.metadata.sha256:
        (folder / COLUMNS_FILE).unlink()
    for file in files:
        if digest_of(folder / file.name) == file.sha256:
            (folder / file.name).unlink()


class ShardWriter:
    """Writes a shard folder: a context manager whose clean exit makes the folder complete.

    Equal samples give equal bytes. The manifest comes last, and after an exception what was written
    is removed, so that nothing half done looks whole. `manifest` is there after a clean exit.

    Args:
        folder: made if missing; must be empty. No file in it is ever replaced.
        tokenizer, codebook_size, strides: see `Manifest`.
        samples_per_shard, max_shard_bytes: a shard ends at whichever it reaches first. It is held in memory until
            then, and nothing of the samples before it. Null samples: `default_shard_size` of `expected`, or where
            that is not known either, of those written so far.
        expected: how many samples will come, about.
        text_tokenizer: counts the ids of the captions, so that a training with it knows what fits.
        again: the folder may hold what an interrupted call wrote of the same samples.
    """

    manifest: Manifest
    KEYS_IN_MEMORY = IN_MEMORY

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: str,
        codebook_size: int,
        strides: Shape,
        samples_per_shard: int | None = None,
        max_shard_bytes: int = 64 << 20,
        expected: int | None = None,
        text_tokenizer: TextTokenizer | None = None,
        again: bool = False,
    ) -> None:
        between(1, MAX_CODEBOOK_SIZE).check("codebook_size", codebook_size)
        optional(between(1, 1_000_000)).check("samples_per_shard", samples_per_shard)
        between(1, MAX_FILE_BYTES // 2).check("max_shard_bytes", max_shard_bytes)
        self._folder, self._tokenizer = folder, tokenizer
        self._codebook_size, self._strides = codebook_size, strides
        self._samples_per_shard, self._max_shard_bytes = samples_per_shard, max_shard_bytes
        self._expected, self._again = expected, again
        self._keys = KeyIndex(partial(self._scratch, "keys"), in_memory=self.KEYS_IN_MEMORY)
        self._text_tokenizer = text_tokenizer
        self._columns = ColumnsWriter(None if text_tokenizer is None else text_tokenizer.fingerprint)
        self._shapes: dict[Shape, int] = {}
        self._shards: list[tuple[str, int, int, str]] = []  # file, samples, bytes and sha256
        self._rows: BinaryIO | None = None  # of what is written
        self._n_samples = 0
        self._written: dict[Path, str] = {}  # by this call, with their sha256
        self._open_shard()

    def _scratch(self, name: str) -> BinaryIO:
        """A file in the folder that has no name any more, and is gone with this process."""
        path = partial_of(self._folder / name)
        file = path.open("x+b")
        path.unlink()
        return file

    def _open_shard(self) -> None:
        self._open = ShardTar(self._tokenizer, self._shapes)
        self._open_keys: dict[str, None] = {}  # in their order
        written = self._n_samples if self._expected is None else self._expected
        self._most_samples = self._samples_per_shard or default_shard_size(written)

    def __enter__(self) -> Self:
        is_taken = os.path.lexists(self._folder) and (not self._folder.is_dir() or any(self._folder.iterdir()))
        if is_taken and not self._again:
            fix = "remove it (without a manifest.json it is an interrupted import), or write elsewhere"
            raise DataError("shards need an empty folder", file=self._folder, fix=fix)
        make_folder(self._folder, within=self._folder.parent)
        written = MANIFEST_FILE, ROWS_FILE, COLUMNS_FILE, "keys", "rows"
        remove_partials(self._folder, of=lambda name: name in written or bool(_SHARD.fullmatch(name)))
        return self

    def add(self, sample: ShardSample) -> None:
        """Append a sample.

        Raises:
            DataError: a field that is wrong, or a key that the data set has already.
        """
        with located(where=f"sample {sample.key}"):
            check_sample(sample, self._codebook_size, self._strides)
            if sample.key in self._open_keys or sample.key in self._keys.recent:
                raise DataError("two samples of one key")
        self._open.add(sample, longest_caption(sample, self._text_tokenizer))
        self._open_keys[sample.key] = None
        if self._open.n_samples >= self._most_samples or self._open.n_bytes >= self._max_shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        keys = list(self._open_keys)
        for key, before in zip(keys, self._keys.find(keys), strict=True):
            if before is not None:
                got = f"also in {self._shards[before][0]}"
                raise DataError("two samples of one key", where=f"sample {key}", got=got)
        known = self._open.known
        for metadata, text_ids in zip(known.metadata, known.text_ids, strict=True):
            self._columns.add(metadata, known.captions, text_ids)
        data, entry = self._open.close(f"shard-{len(self._shards):06d}.tar")
        self._write(entry.file, data)
        rows = list(zip(entry.shapes, entry.text_lengths, entry.ends, entry.checksums, strict=True))
        with naming(self._folder / ROWS_FILE):
            self._rows = self._rows or self._scratch("rows")
            self._rows.write(np.array(rows, ROW).tobytes())
            self._keys.add(keys, len(self._shards))
        self._shards.append((entry.file, entry.n_samples, entry.n_bytes, entry.sha256))
        self._n_samples += entry.n_samples
        self._open_shard()

    def _write(self, file: str, content: Any, digest: str | None = None) -> None:
        path = self._folder / file
        self._written[path] = digest or hashlib.sha256(content).hexdigest()
        if not write_new(path, content):
            del self._written[path]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            if error is None:
                self._finish()
                complete = True
        finally:
            self._keys.close()
            if self._rows is not None:
                self._rows.close()
            if not complete:
                self._open.abandon()
                for path, digest in self._written.items():
                    if digest_of(path) == digest:
                        path.unlink()

    def _finish(self) -> None:
        if self._open.n_samples:
            self._close_shard()
        if self._rows is None:
            raise DataError("no samples to write", file=self._folder)
        with naming(self._folder / ROWS_FILE):
            self._rows.flush()
        values = np.memmap(self._rows, ROW, mode="r", shape=(self._n_samples,))
        self.manifest = Manifest(
            tokenizer=self._tokenizer,
            codebook_size=self._codebook_size,
            strides=self._strides,
            shapes=tuple(self._shapes),
            shards=ShardTable.over(Rows(values=values), self._shards),
            metadata=self._write_columns(),
        )
        if unlisted := self.manifest.unlisted_shards(self._folder):
            raise unlisted[0]
        for file in self.manifest.files():
            self._write(file.name, file.content, file.sha256)

    def _write_columns(self) -> SideFile | None:
        """The file of what else is known of the samples, if anything is."""
        content = self._columns.content
        if content is None:
            return None
        file = SideFile(n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        self._write(COLUMNS_FILE, content, file.sha256)
        return file


def write_by_kind(
    out: Path,
    samples: Iterable[ShardSample],
    *,
    tokenizer: str,
    codebook_size: int,
    strides: Shape,
    again: bool = False,
    **limits: Any,
) -> dict[str, Manifest]:
    """Write samples of one latent frame to `out/images` and longer ones to `out/videos`, each if there are any.

    An exception leaves no shards in either folder.

    Args:
        again: see `ShardWriter`.
        limits: `samples_per_shard`, `max_shard_bytes`, `expected` and `text_tokenizer`, as of `ShardWriter`.
    Returns:
        the manifest of each folder that was written, by its name.
    """
    writers: dict[str, ShardWriter] = {}
    with ExitStack() as stack:
        for sample in samples:
            kind = IMAGES if len(sample.codes) == 1 else VIDEOS
            if kind not in writers:
                writer = ShardWriter(
                    out / kind, tokenizer=tokenizer, codebook_size=codebook_size, strides=strides, again=again, **limits
                )
                writers[kind] = stack.enter_context(writer)
            writers[kind].add(sample)
    return {kind: writer.manifest for kind, writer in sorted(writers.items())}
