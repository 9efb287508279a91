"""Shards: videos and images as codes, in tars that any WebDataset reader understands.

    DIR/manifest.json                     what every shard must hold (see `Manifest`)
    DIR/shard-000000.tar                  per sample, in this order:
        KEY.codes.npy                         codes, uint16 [T, H, W]
        KEY.json                              text, frames, fps, duration, width, height, source, tokenizer

A sample knows no token layout: ids are given when a sequence is built. Its codes take 2 bytes each,
where the release's pickles take 10 a token. Nothing in a shard is unpickled.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from pydantic import with_config

from data_modules.shards.manifest import Manifest, Shape
from data_modules.shards.places import Place
from data_modules.shards.reading import RETRY, read_checked, reason
from data_modules.shards.sample import (
    KEY,
    SampleFields,
    ShardSample,
    check_sample,
    sample_of,
    text_length,
)
from data_modules.shards.sample_bytes import CODES_SUFFIX, JSON_SUFFIX, key_at, whole_samples
from data_modules.shards.table import ShardEntry
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import first_repeated, parse_json, wrong
from lumos_pl.machinery.retrying import RetryConfig

Member = tuple[str, bytes, bytes]


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
        key = name.removesuffix(CODES_SUFFIX)
        if (name, json_name) != (key + CODES_SUFFIX, key + JSON_SUFFIX) or not KEY.fullmatch(key):
            expected = f"KEY{CODES_SUFFIX}, KEY{JSON_SUFFIX}"
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
        shape = manifest.shapes[entry.shapes[position]]
        sample = sample_of(values, key=key, codes=_parse_codes(codes, shape))
        check_sample(sample, manifest.codebook_size, manifest.strides)
        if text_length(sample) != entry.text_lengths[position]:
            raise DataError(
                "text of another length", where="text", got=text_length(sample), expected=entry.text_lengths[position]
            )
        return sample


_one_parses = Lock()  # Python 3.11 may say "AST constructor recursion depth mismatch" to threads that parse at once


@lru_cache(maxsize=1024)
def _codes_header(shape: Shape) -> bytes:
    """What a .npy file of such codes begins with, as numpy writes it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _parse_header(data: bytes, shape: Shape) -> int:
    """The length of a header that says the same in other words; raises DataError if it does not."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        with _one_parses:
            got_shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy raises many kinds at a broken header
        raise DataError("not a .npy array", where="codes", got=error) from error
    if dtype != np.uint16 or got_shape != shape or fortran_order:
        got = f"{dtype} {list(got_shape)}" + (" in Fortran order" if fortran_order else "")
        raise DataError("wrong codes", where="codes", got=got, expected=f"uint16 {list(shape)}")
    return file.tell()


def _parse_codes(data: bytes, shape: Shape) -> NDArray[np.uint16]:
    """The array of a .npy file, whose header is compared before anything is allocated."""
    header = _codes_header(shape)
    start = len(header) if data.startswith(header) else _parse_header(data, shape)
    content = data[start:]
    expected = 2 * shape[0] * shape[1] * shape[2]
    if len(content) != expected:
        raise DataError("wrong codes", where="codes", got=f"{len(content)} bytes", expected=expected)
    return np.array(np.frombuffer(content, np.uint16).reshape(shape))  # a copy that may be written to
