"""The fields of a manifest.json in each of its forms, and the shards that they stand for; see `Manifest`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import FailFast, Field, with_config
from typing_extensions import TypedDict

from data_modules.shards.sample_rows import open_rows
from data_modules.shards.table import PLAIN_ROW, ROW, Rows, ShardEntry, ShardTable
from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import wrong

WITH_ROWS_FILE = "lumos-shards-3"
WITH_LISTS = "lumos-shards-2"
WITHOUT_CHECKSUMS = "lumos-shards-1"  # of a manifest whose shards have no `ends` and `checksums`
MAX_FILE_BYTES = 1 << 30  # shards and manifests are read whole
MAX_CODEBOOK_SIZE = 1 << 16  # codes are uint16

_SHARD_FILE = r"[A-Za-z0-9][A-Za-z0-9_-]*\.tar"  # no separator, no URL, no `pipe:`


@dataclass(frozen=True, kw_only=True)
class SideFile:
    """A file beside the manifest that belongs to it."""

    n_bytes: int
    sha256: str


_Size = Annotated[int, Field(ge=1, lt=1 << 32)]
_Sizes = Annotated[list[_Size], Field(min_length=3, max_length=3)]
_Bytes = Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
_Numbers = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], FailFast()]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(extra="forbid")
class _Shard(TypedDict):
    file: Annotated[str, Field(pattern=f"^{_SHARD_FILE}$")]
    n_samples: _Size
    n_bytes: _Bytes
    sha256: _Digest
    shapes: NotRequired[_Numbers]
    text_lengths: NotRequired[Annotated[list[_Bytes], FailFast()]]
    ends: NotRequired[_Numbers]
    checksums: NotRequired[_Numbers]


@with_config(extra="forbid")
class _SideFile(TypedDict):
    n_bytes: Annotated[int, Field(ge=1, lt=1 << 40)]
    sha256: _Digest


@with_config(extra="forbid")
class _Samples(_SideFile):
    columns: list[Literal["shape", "text_length", "end", "checksum"]]


@with_config(extra="forbid")
class ManifestContent(TypedDict):
    format: Literal["lumos-shards-1", "lumos-shards-2", "lumos-shards-3"]
    tokenizer: Annotated[str, Field(min_length=1)]
    codebook_size: Annotated[int, Field(ge=1, le=MAX_CODEBOOK_SIZE)]
    strides: _Sizes
    shapes: Annotated[list[_Sizes], Field(min_length=1)]
    shards: Annotated[list[_Shard], Field(min_length=1)]
    samples: NotRequired[_Samples]
    identity: NotRequired[_Digest]
    metadata: NotRequired[_SideFile]


_LISTS = {  # that a shard has in each form
    WITHOUT_CHECKSUMS: {"shapes", "text_lengths"},
    WITH_LISTS: {"shapes", "text_lengths", "ends", "checksums"},
    WITH_ROWS_FILE: set[str](),
}


def _check_fields(found: Any, expected: set[str], optional: set[str], where: str) -> None:
    """What fields there must be, of those that another form has."""
    for name in sorted(optional):
        if (name in found) != (name in expected):
            raise DataError("missing field" if name in expected else "unknown field", where=f"{where}{name}")


def shards_with_lists(content: ManifestContent) -> list[ShardEntry]:
    _check_fields(content, set(), {"samples", "identity"}, "")
    for i, shard in enumerate(content["shards"]):
        _check_fields(shard, _LISTS[content["format"]], _LISTS[WITH_LISTS], f"shards[{i}].")
        _check_entry(f"shards[{i}]", shard, len(content["shapes"]))
    return [ShardEntry(**shard) for shard in content["shards"]]


def _check_entry(where: str, shard: _Shard, n_shapes: int) -> None:
    """What the fields of one shard must be beside each other."""
    for name, values in shard.items():
        if isinstance(values, list) and len(values) != shard["n_samples"]:
            got, expected = f"{len(values)} items", shard["n_samples"]
            raise DataError("wrong field", where=f"{where}.{name}", got=got, expected=expected)
    if (index := max(shard["shapes"])) >= n_shapes:
        raise wrong(f"{where}.shapes", index, f"at most {n_shapes - 1}")
    if "ends" in shard:
        ends = [0, *shard["ends"]]
        if any(one >= other for one, other in pairwise(ends)) or ends[-1] > shard["n_bytes"]:
            raise wrong(f"{where}.ends", shard["ends"], f"ascending numbers up to {shard['n_bytes']}")


def shards_with_rows(content: ManifestContent, rows_file: Callable[[SideFile], Path]) -> ShardTable:
    if "samples" not in content:
        raise DataError("missing field", where="samples")
    for i, shard in enumerate(content["shards"]):
        if len(shard) != 4:
            _check_fields(shard, set(), _LISTS[WITH_LISTS], f"shards[{i}].")
    samples = content["samples"]
    dtype = ROW if len(samples["columns"]) == len(ROW.descr) else PLAIN_ROW
    if tuple(samples["columns"]) != dtype.names:
        raise wrong("samples.columns", samples["columns"], list(ROW.names or ()))
    shards = [(shard["file"], shard["n_samples"], shard["n_bytes"], shard["sha256"]) for shard in content["shards"]]
    table = ShardTable.over(Rows(values=np.empty(0, dtype)), shards)
    where = SideFile(n_bytes=samples["n_bytes"], sha256=samples["sha256"])
    rows = open_rows(
        rows_file(where), where.n_bytes, where.sha256, dtype, table, len(content["shapes"]), MAX_FILE_BYTES
    )
    return replace(table, rows=(rows,))
