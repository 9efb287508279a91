"""Shards: videos and images as codes, in tars that any WebDataset reader understands.

    DIR/manifest.json                     what every shard must hold (see `Manifest`)
    DIR/shard-000000.tar                  per sample, in this order:
        KEY.codes.npy                         codes, uint16 [T, H, W]
        KEY.json                              text, frames, fps, duration, width, height, source, tokenizer

A sample knows no token layout: ids are given when a sequence is built. Its codes take 2 bytes each,
where the release's pickles take 10 a token. Nothing in a shard is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import webdataset
from numpy.typing import NDArray
from pydantic import with_config

from data_modules.manifest import (
    MANIFEST_FILE,
    MAX_CODEBOOK_SIZE,
    MAX_FILE_BYTES,
    Manifest,
    Shape,
    ShardEntry,
)
from data_modules.places import Place
from data_modules.reading import RETRY, read_checked, reason
from data_modules.shard_bytes import CODES_SUFFIX, key_at, whole_samples
from data_modules.shard_sample import KEY, NUMBERS, SampleFields, ShardSample, check_sample, resolve_text, text_length
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import make_folder, write_new
from lumos_pl.machinery.json_file import first_repeated, parse_json, wrong
from lumos_pl.machinery.own_files import digest_of, remove_partials
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.settings.ranges import between

__all__ = [
    "KIND_FOLDERS",
    "Manifest",
    "ShardEntry",
    "ShardSample",
    "ShardWriter",
    "read_shard",
    "resolve_text",
    "write_by_kind",
]

IMAGES, VIDEOS = KIND_FOLDERS = "images", "videos"  # folders of one data set: one latent frame, or more

Member = tuple[str, bytes, bytes]

_SHARD = re.compile(r"shard-[0-9]{6,}\.tar")
_CODES, _JSON = CODES_SUFFIX, ".json"


@with_config(extra="forbid")
class SampleText(SampleFields):
    """What the JSON of a sample holds: its fields beside the codes, and the fingerprint of what made these."""

    tokenizer: str


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """What stands in a shard for a sample that cannot be used; no key where none can be read."""

    key: str | None
    reason: str


def remove_shards(folder: Path) -> None:
    """Remove the shards that a manifest of ours vouches for, as far as they are as it says, and then the manifest."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return
    manifest = Manifest.load(folder)
    for entry in manifest.shards:
        if digest_of(folder / entry.file) == entry.sha256:
            (folder / entry.file).unlink()
    if digest_of(file) == hashlib.sha256(manifest.content).hexdigest():
        file.unlink()


def read_shard(folder: Place, manifest: Manifest, index: int, retry: RetryConfig = RETRY) -> list[ShardSample]:
    """The samples of one shard, all of which are exactly what the manifest says.

    Raises:
        DataError: the first thing that is not, with its shard, sample key and field.
        TemporaryError: the storage does not answer, see `read_patiently`.
    """
    entry = manifest.shards[index]
    path = folder / entry.file
    members = read_members(path, entry, retry)
    return [parse_sample(path, manifest, entry, position, *member) for position, member in enumerate(members)]


def read_each(
    folder: Place, manifest: Manifest, index: int, retry: RetryConfig = RETRY
) -> list[ShardSample | BadSample]:
    """As `read_shard`, but of a damaged shard whatever is whole, as far as its manifest has checksums to tell.

    Raises:
        DataError: nothing of it can be used.
        TemporaryError: as `read_shard`.
    """
    entry = manifest.shards[index]
    path = folder / entry.file
    data, damage = read_checked(path, entry, retry)
    if damage is None:
        with located(path):
            whole = dict(enumerate(group_members(data, entry.n_samples)))
    elif parts := whole_samples(data, entry):
        whole = {place: group_members(part, 1)[0] for place, part in parts.items()}
    else:
        raise damage

    def read(place: int) -> ShardSample | BadSample:
        if place not in whole:
            why = f"not as it was written, number {place + 1} of {entry.n_samples}"
            return BadSample(key=key_at(data, entry, place), reason=why)
        try:
            return parse_sample(path, manifest, entry, place, *whole[place])
        except DataError as error:
            return BadSample(key=whole[place][0], reason=reason(error))

    return [read(place) for place in range(entry.n_samples)]


def read_members(path: Place, entry: ShardEntry, retry: RetryConfig = RETRY, *, was_there: bool = True) -> list[Member]:
    """Key, .npy and JSON of every sample. The digest is checked before anything is parsed."""
    data, damage = read_checked(path, entry, retry, was_there=was_there)
    if damage is not None:
        raise damage
    with located(path):
        return group_members(data, entry.n_samples)


def _plain_members(data: bytes) -> list[tuple[str, bytes]]:
    """Name and content of every member of a tar, which may hold plain files only.

    Not webdataset's own iterator, which passes over links in silence, unpacks compressed archives
    and expands sparse members to any size.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = archive.getmembers()
    except (tarfile.TarError, ValueError) as error:
        raise DataError("not a whole tar archive", got=error) from error
    for member in members:
        if member.type != tarfile.REGTYPE or member.issparse():
            raise DataError("member that is not a plain file", where=f"offset {member.offset}", got=repr(member.name))
    end = max((member.offset_data + member.size for member in members), default=0)
    if len(data) < end or data[end:].strip(b"\0"):
        raise DataError("damaged tar archive", where=f"offset {end}", expected="zeros up to the end")
    return [(member.name, data[member.offset_data : member.offset_data + member.size]) for member in members]


def group_members(data: bytes, n_samples: int) -> list[Member]:
    """Key, .npy and JSON of the samples in a tar: two members each, in order."""
    members = _plain_members(data)
    if len(members) != 2 * n_samples:
        raise DataError("wrong number of members", got=len(members), expected=f"{2 * n_samples}, two a sample")
    samples = []
    for (name, codes), (json_name, content) in zip(members[::2], members[1::2], strict=True):
        key = name.removesuffix(_CODES)
        if (name, json_name) != (key + _CODES, key + _JSON) or not KEY.fullmatch(key):
            expected = f"KEY{_CODES}, KEY{_JSON}"
            raise DataError("wrong members", got=f"{name!r}, {json_name!r}", expected=expected)
        samples.append((key, codes, content))
    if repeated := first_repeated(key for key, _, _ in samples):
        raise DataError("two samples of one key", where=f"sample {repeated}")
    return samples


def parse_sample(
    path: Place, manifest: Manifest, entry: ShardEntry, position: int, key: str, codes: bytes, content: bytes
) -> ShardSample:
    with located(path, f"sample {key}"):
        values = parse_json(content, SampleText)
        if values["tokenizer"] != manifest.tokenizer:
            raise wrong("tokenizer", values["tokenizer"], repr(manifest.tokenizer))
        text = values["text"] if isinstance(values["text"], str) else tuple(values["text"])
        shape = manifest.shapes[entry.shapes[position]]
        numbers = {name: values[name] for name in NUMBERS}  # type: ignore[literal-required]
        sample = ShardSample(key=key, codes=_parse_codes(codes, shape), text=text, source=values["source"], **numbers)
        check_sample(sample, manifest.codebook_size, manifest.strides)
        if text_length(sample) != entry.text_lengths[position]:
            raise DataError(
                "text of another length", where="text", got=text_length(sample), expected=entry.text_lengths[position]
            )
        return sample


def _parse_codes(data: bytes, shape: Shape) -> NDArray[np.uint16]:
    """The array of a .npy file, whose header is compared before anything is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        got_shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy raises many kinds at a broken header
        raise DataError("not a .npy array", where="codes", got=error) from error
    if dtype != np.uint16 or got_shape != shape or fortran_order:
        got = f"{dtype} {list(got_shape)}" + (" in Fortran order" if fortran_order else "")
        raise DataError("wrong codes", where="codes", got=got, expected=f"uint16 {list(shape)}")
    content = data[file.tell() :]
    expected = 2 * shape[0] * shape[1] * shape[2]
    if len(content) != expected:
        raise DataError("wrong codes", where="codes", got=f"{len(content)} bytes", expected=expected)
    return np.array(np.frombuffer(content, np.uint16).reshape(shape))  # a copy that may be written to


# -- writing -------------------------------------------------------------------------------------


class ShardWriter:
    """Writes a shard folder: a context manager whose clean exit makes the folder complete.

    Equal samples give equal bytes. The manifest comes last, and after an exception what was written
    is removed, so that nothing half done looks whole. `manifest` is there after a clean exit.

    Args:
        folder: made if missing; must be empty. No file in it is ever replaced.
        tokenizer, codebook_size, strides: see `Manifest`.
        samples_per_shard, max_shard_bytes: a shard ends at whichever it reaches first. It is held
            in memory until then.
        again: the folder may hold what an interrupted call wrote of the same samples.
    """

    manifest: Manifest

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: str,
        codebook_size: int,
        strides: Shape,
        samples_per_shard: int = 256,
        max_shard_bytes: int = 64 << 20,
        again: bool = False,
    ) -> None:
        between(1, MAX_CODEBOOK_SIZE).check("codebook_size", codebook_size)
        between(1, 1_000_000).check("samples_per_shard", samples_per_shard)
        between(1, MAX_FILE_BYTES // 2).check("max_shard_bytes", max_shard_bytes)
        self._folder, self._tokenizer = folder, tokenizer
        self._codebook_size, self._strides = codebook_size, strides
        self._samples_per_shard, self._max_shard_bytes = samples_per_shard, max_shard_bytes
        self._again = again
        self._keys: set[str] = set()
        self._shapes: dict[Shape, int] = {}
        self._entries: list[ShardEntry] = []
        self._written: dict[Path, str] = {}  # by this call, with their sha256
        self._open_shard()

    def _open_shard(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = webdataset.TarWriter(self._buffer, user="lumos", group="lumos", mtime=0)
        self._sample_shapes: list[int] = []
        self._text_lengths: list[int] = []
        self._ends: list[int] = []

    def __enter__(self) -> Self:
        is_taken = os.path.lexists(self._folder) and (not self._folder.is_dir() or any(self._folder.iterdir()))
        if is_taken and not self._again:
            fix = "remove it (without a manifest.json it is an interrupted import), or write elsewhere"
            raise DataError("shards need an empty folder", file=self._folder, fix=fix)
        make_folder(self._folder, within=self._folder.parent)
        remove_partials(self._folder, of=lambda name: name == MANIFEST_FILE or bool(_SHARD.fullmatch(name)))
        return self

    def add(self, sample: ShardSample) -> None:
        """Append a sample.

        Raises:
            DataError: a field that is wrong, or a key that the data set has already.
        """
        with located(where=f"sample {sample.key}"):
            check_sample(sample, self._codebook_size, self._strides)
            if sample.key in self._keys:
                raise DataError("two samples of one key")
        self._keys.add(sample.key)
        codes = io.BytesIO()
        np.lib.format.write_array(codes, np.ascontiguousarray(sample.codes), version=(1, 0), allow_pickle=False)
        content = {name: getattr(sample, name) for name in ("text", *NUMBERS, "source")} | {
            "tokenizer": self._tokenizer
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
        self._tar.write({"__key__": sample.key, _CODES[1:]: codes.getvalue(), _JSON[1:]: text})
        t, h, w = sample.codes.shape
        self._sample_shapes.append(self._shapes.setdefault((t, h, w), len(self._shapes)))
        self._text_lengths.append(text_length(sample))
        self._ends.append(self._tar.tarstream.offset)
        if len(self._text_lengths) >= self._samples_per_shard or self._tar.tarstream.offset >= self._max_shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        self._tar.close()
        data = self._buffer.getvalue()
        file = f"shard-{len(self._entries):06d}.tar"
        self._write(file, data)
        entry = ShardEntry(
            file=file,
            n_samples=len(self._text_lengths),
            n_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            shapes=tuple(self._sample_shapes),
            text_lengths=tuple(self._text_lengths),
            ends=tuple(self._ends),
            checksums=tuple(zlib.crc32(data[start:end]) for start, end in pairwise((0, *self._ends))),
        )
        self._entries.append(entry)
        self._open_shard()

    def _write(self, file: str, data: bytes) -> None:
        path = self._folder / file
        self._written[path] = hashlib.sha256(data).hexdigest()
        if not write_new(path, data):
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
            if not complete:
                self._tar.tarstream.close()  # else it writes its end when it is collected, and finds no file
                for path, digest in self._written.items():
                    if digest_of(path) == digest:
                        path.unlink()

    def _finish(self) -> None:
        if self._text_lengths:
            self._close_shard()
        if not self._entries:
            raise DataError("no samples to write", file=self._folder)
        self.manifest = Manifest(
            tokenizer=self._tokenizer,
            codebook_size=self._codebook_size,
            strides=self._strides,
            shapes=tuple(self._shapes),
            shards=tuple(self._entries),
        )
        if unlisted := self.manifest.unlisted_shards(self._folder):
            raise unlisted[0]
        self._write(MANIFEST_FILE, self.manifest.content)


def write_by_kind(
    out: Path,
    samples: Iterable[ShardSample],
    *,
    tokenizer: str,
    codebook_size: int,
    strides: Shape,
    again: bool = False,
    **limits: int,
) -> dict[str, Manifest]:
    """Write samples of one latent frame to `out/images` and longer ones to `out/videos`, each if there are any.

    An exception leaves no shards in either folder.

    Args:
        again: see `ShardWriter`.
        limits: `samples_per_shard` and `max_shard_bytes`, as of `ShardWriter`.
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
