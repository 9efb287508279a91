"""Which samples of a shard's bytes are as they were written, whatever has become of the others."""

from __future__ import annotations

import zlib
from itertools import pairwise

from data_modules.shards.sample import KEY
from data_modules.shards.table import ShardEntry

CODES_SUFFIX, JSON_SUFFIX = ".codes.npy", ".json"


def whole_samples(data: bytes, entry: ShardEntry) -> dict[int, bytes]:
    """The bytes of every sample of a shard, by its place, that are as they were written."""
    parts = ((place, data[start:end]) for place, (start, end) in enumerate(pairwise((0, *entry.ends))))
    return {place: part for place, part in parts if zlib.crc32(part) == entry.checksums[place]}


def first_damage(data: bytes, entry: ShardEntry) -> str | None:
    """The first sample of a damaged shard that is not whole, as far as the manifest and the tar can tell."""
    whole = whole_samples(data, entry)
    place = next((place for place in range(len(entry.ends)) if place not in whole), None)
    if place is None:
        return f"offset {entry.ends[-1]}, behind the samples" if entry.ends else None
    key = key_at(data, entry, place)
    named = "sample" if key is None else f"sample {key}"
    return f"{named}, number {place + 1} of {entry.n_samples}, from offset {(0, *entry.ends)[place]} on"


def key_at(data: bytes, entry: ShardEntry, place: int) -> str | None:
    """The key that a sample's own bytes say, which may be damaged; None: nothing like a key."""
    start = (0, *entry.ends)[place]
    name = data[start : start + 100].rstrip(b"\0").decode(errors="replace").removesuffix(CODES_SUFFIX)
    return name if KEY.fullmatch(name) else None
