"""Shards that grow in a folder over many attempts, in the memory of the shards that are open."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_modules.shards.columns_writer import longest_caption
from data_modules.shards.manifest import MANIFEST_FILE, Manifest, Shape
from data_modules.shards.manifest_file import SideFile
from data_modules.shards.metadata import COLUMNS_FILE
from data_modules.shards.sample import ShardSample, check_sample
from data_modules.shards.sample_rows import ROWS_FILE
from data_modules.shards.tar import ShardTar
from data_modules.shards.writer import IMAGES, KIND_FOLDERS, VIDEOS
from data_modules.tokenizing.journal import Samples
from data_modules.tokenizing.ledger import Ledger, Said
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import make_folder, write_atomically, write_new
from lumos_pl.machinery.own_files import digest_of, remove_partials
from lumos_pl.tokenizers.text import TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

MAX_SHARD_BYTES = 64 << 20
FILES = MANIFEST_FILE, ROWS_FILE, COLUMNS_FILE  # beside the shards


class GrowingShards:
    """Writes the shards of `folder/images` and `folder/videos`, each when it is full, and their manifests at the end.

    Equal outcomes in an equal order give equal bytes, however often the work was interrupted in between.

    Args:
        ledger: of the folder.
        tokenizer: that made the codes.
        text_tokenizer: counts the ids of captions; None: nothing does.
        samples_per_shard: a shard ends with the sample that fills it, or that brings it to MAX_SHARD_BYTES.
        taken_over: called with the numbers of items that stand in shards, or in the ledger, from now on.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        tokenizer: VisualTokenizer,
        *,
        samples_per_shard: int,
        text_tokenizer: TextTokenizer | None = None,
        taken_over: Callable[[Iterable[int]], None],
    ) -> None:
        self._folder, self._ledger, self._tokenizer = folder, ledger, tokenizer
        self._samples_per_shard, self._taken_over = samples_per_shard, taken_over
        self._text_tokenizer = text_tokenizer
        self._open: dict[str, ShardTar] = {}
        self._shapes: dict[str, dict[Shape, int]] = {}
        self._said: dict[str, Said] = defaultdict(Said)  # of the items in open shards
        self._open_kinds = Counter[int]()  # in how many open shards an item's samples stand
        self._without = Said()  # of the items that have no samples, for the next line
        for kind in KIND_FOLDERS:
            if (folder / kind).is_dir():
                remove_partials(folder / kind, of=lambda name: name.endswith(".tar") or name in FILES)

    def put(self, number: int, outcome: Samples | str) -> None:
        """Take what there is of the next item; what stands here already of it is passed over.

        Raises:
            DataError: a sample with a wrong field, or something else has a shard's name.
        """
        if isinstance(outcome, str):
            if not _holds(self._ledger.quarantined, number):
                self._without.quarantined[number] = outcome
            return
        by_kind: dict[str, list[ShardSample]] = defaultdict(list)
        for sample in outcome.samples:
            by_kind[IMAGES if len(sample.codes) == 1 else VIDEOS].append(sample)
        missing = [kind for kind in KIND_FOLDERS if by_kind[kind] and not _holds(self._ledger.taken[kind], number)]
        if not outcome.samples:
            self._without.rests[number] = outcome.rests
        elif not missing:
            self._taken_over([number])
        self._open_kinds[number] = len(missing)
        for kind in missing:
            rests = outcome.rests if kind == VIDEOS or not by_kind[VIDEOS] else 0
            self._add(kind, number, by_kind[kind], rests)

    def _add(self, kind: str, number: int, samples: list[ShardSample], rests: int) -> None:
        begun = self._ledger.begun[kind].pop(number, 0)
        for place, sample in enumerate(samples[begun:], start=begun + 1):
            if kind not in self._open:
                self._shapes[kind] = {}
                self._open[kind] = ShardTar(self._tokenizer.fingerprint, self._shapes[kind])
            tar = self._open[kind]
            with located(where=f"sample {sample.key}"):
                check_sample(sample, self._tokenizer.codebook_size, self._tokenizer.strides)
            tar.add(sample, longest_caption(sample, self._text_tokenizer))
            if place == len(samples):
                self._said[kind].rows.append(number)
                if rests:
                    self._said[kind].rests[number] = rests
            if tar.n_samples >= self._samples_per_shard or tar.n_bytes >= MAX_SHARD_BYTES:
                self._close(kind, {number: place} if place < len(samples) else {})

    def _close(self, kind: str, begun: dict[int, int]) -> None:
        folder = self._folder / kind
        make_folder(folder, within=self._folder)
        file = f"shard-{self._ledger.n_shards[kind]:06d}.tar"
        tar = self._open.pop(kind)
        data, entry = tar.close(file)
        self._check_free(folder / file, entry.sha256)
        said, without = self._said.pop(kind, Said()), self._without
        said.begun, said.quarantined, said.rests = begun, without.quarantined, said.rests | without.rests
        self._ledger.append(said, (kind, entry, list(self._shapes.pop(kind))), tar.known)
        write_new(folder / file, data)
        self._without = Said()
        self._open_kinds.subtract(said.rows)
        closed = [number for number in said.rows if not self._open_kinds[number]]
        for number in closed:
            del self._open_kinds[number]
        self._taken_over([*closed, *without.quarantined, *without.rests])

    def _check_free(self, file: Path, digest: str) -> None:
        """Before the ledger promises a shard, see that its name can be given to it."""
        if file.exists() and digest_of(file) != digest:
            raise DataError("another's file has this name", file=file, fix="move it away, or write elsewhere")

    def finish(self) -> dict[str, Manifest]:
        """Write what is open, and the manifests.

        Returns:
            the manifest of each kind of which there is a sample.
        """
        for kind in KIND_FOLDERS:
            if kind in self._open:
                self._close(kind, {})
        if self._without != Said():
            self._ledger.append(self._without, None)
            self._taken_over([*self._without.quarantined, *self._without.rests])
            self._without = Said()
        manifests = {kind: self._manifest(kind) for kind in KIND_FOLDERS if self._ledger.n_shards[kind]}
        for kind, manifest in manifests.items():
            if unlisted := manifest.unlisted_shards(self._folder / kind):
                raise unlisted[0]
        manifests = {kind: self._with_columns(kind, manifest) for kind, manifest in manifests.items()}
        for kind, manifest in manifests.items():
            *others, last = manifest.files()
            for file in others:  # of which an attempt that was killed may have left another
                write_atomically(self._folder / kind / file.name, file.content, root=self._folder)
            write_new(self._folder / kind / last.name, last.content)
        return manifests

    def _with_columns(self, kind: str, manifest: Manifest) -> Manifest:
        """The manifest with the file of what else is known of the samples, which is written if anything is."""
        tokenizer = self._text_tokenizer
        content = self._ledger.columns(kind, None if tokenizer is None else tokenizer.fingerprint)
        if content is None:
            return manifest
        write_atomically(self._folder / kind / COLUMNS_FILE, content, root=self._folder)
        file = SideFile(n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        return replace(manifest, metadata=file)

    def _manifest(self, kind: str) -> Manifest:
        tokenizer = self._tokenizer
        return self._ledger.manifest(
            kind, tokenizer=tokenizer.fingerprint, codebook_size=tokenizer.codebook_size, strides=tokenizer.strides
        )

    def remove_manifests(self) -> None:
        """Of a folder that was complete, or nearly so: more is to come."""
        for kind in KIND_FOLDERS:
            file = self._folder / kind / MANIFEST_FILE
            if not (self._ledger.n_shards[kind] and file.is_file()):
                continue
            manifest = Manifest.read(file.parent)
            if [(shard.file, shard.sha256) for shard in manifest.shards] != [
                (shard.file, shard.sha256) for shard in self._manifest(kind).shards
            ]:
                fix = "move it away, or write elsewhere"
                raise DataError("a manifest of other shards", file=file, fix=fix)
            file.unlink()  # first: the others are nothing without it
            for other in manifest.files()[:-1]:
                if digest_of(file.with_name(other.name)) == other.sha256:
                    file.with_name(other.name).unlink()

    def abandon(self) -> None:
        """Let go of what is open; it stands in the journal."""
        for tar in self._open.values():
            tar.abandon()
        self._open.clear()


def _holds(ascending: np.ndarray[tuple[int], np.dtype[np.uint64]], number: int) -> bool:
    place = int(np.searchsorted(ascending, np.uint64(number)))
    return place < len(ascending) and int(ascending[place]) == number
