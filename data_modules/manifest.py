"""The manifest of a shard folder: what every file must hold, known before any is opened.

A tar alone cannot tell that samples are missing: readers end quietly at a damaged header. The
manifest holds each shard's size, sha256 and sample count, and each sample's shape and text length,
so that damage is found, and a stream planned and resumed, without opening any shard.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NotRequired, Self

from pydantic import FailFast, Field, with_config
from typing_extensions import TypedDict

from data_modules.places import Place, names_in, read_whole
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.json_file import first_repeated, parse_json, wrong

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = "lumos-shards-2"
WITHOUT_CHECKSUMS = "lumos-shards-1"  # of a manifest whose shards have no `ends` and `checksums`
MAX_FILE_BYTES = 1 << 30  # shards and manifests are read whole
MAX_CODEBOOK_SIZE = 1 << 16  # codes are uint16
UINT32 = "I"  # what numbers of samples are held in: 18 bytes a sample, where tuples take 110

_SHARD_FILE = r"[A-Za-z0-9][A-Za-z0-9_-]*\.tar"  # no separator, no URL, no `pipe:`
_IMPORT_FIX = "make it with `lumos tokenize` (own media; without images: data.kind=video) or `lumos import-tokens`"

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What one shard must hold.

    Args:
        file: its name in the folder.
        n_samples, n_bytes, sha256: sample count, size and digest of the whole file.
        shapes: per sample, index into `Manifest.shapes`.
        text_lengths: per sample, the text's ids with the numbers of the whole clip written out, or
            the UTF-8 bytes of its caption: an upper bound on its tokens.
        ends, checksums: per sample, where its bytes in the file end (they begin where those of the one
            before end), and their crc32. They tell which samples of a damaged file are whole.
    """

    file: str
    n_samples: int
    n_bytes: int
    sha256: str
    shapes: Sequence[int]
    text_lengths: Sequence[int]
    ends: Sequence[int] = ()
    checksums: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in "shapes", "text_lengths", "ends", "checksums":
            object.__setattr__(self, name, array(UINT32, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one shard folder must hold.

    Args:
        tokenizer: fingerprint of the visual tokenizer.
        codebook_size: every code is below it.
        strides: RGB frames and pixels per latent step in t, h, w.
        shapes: the latent shapes [T, H, W] that occur.
        shards: one entry per file, in the order of writing.
    """

    tokenizer: str
    codebook_size: int
    strides: Shape
    shapes: tuple[Shape, ...]
    shards: tuple[ShardEntry, ...]

    @cached_property
    def n_samples(self) -> int:
        return sum(shard.n_samples for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the data set: sha256 over the content."""
        return hashlib.sha256(self.content).hexdigest()

    def identified(self, fingerprint: str) -> Self:
        """This manifest, whose fingerprint is known: writing millions of samples out to find it takes minutes."""
        vars(self)["fingerprint"] = fingerprint
        return self

    @property
    def content(self) -> bytes:
        """Of the file."""
        content = {"format": MANIFEST_FORMAT, **asdict(self)}
        if not all(shard.checksums for shard in self.shards):
            content["format"] = WITHOUT_CHECKSUMS
            for shard in content["shards"]:
                del shard["ends"], shard["checksums"]
        return json.dumps(content, sort_keys=True, default=array.tolist).encode() + b"\n"

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json`, whole or not at all."""
        write_atomically(folder / MANIFEST_FILE, self.content)

    @classmethod
    def read(cls, folder: Place) -> Self:
        """The manifest of `folder`, its fields checked, its shards not looked at.

        Raises:
            DataError: no folder, no manifest, or the first field that is wrong.
        """
        path = folder / MANIFEST_FILE
        if isinstance(folder, Path):
            cls._check_is_folder(folder)
        with located(path):
            data = read_whole(path, at_most=MAX_FILE_BYTES)
            return cls._from_json(data).identified(hashlib.sha256(data).hexdigest())

    @staticmethod
    def _check_is_folder(folder: Path) -> None:
        path = folder / MANIFEST_FILE
        if not folder.is_dir():
            raise DataError("no such shard folder", file=folder, fix=_IMPORT_FIX) from FileNotFoundError(str(folder))
        if not path.is_file():
            inner = sorted(found.parent.name for found in folder.glob(f"*/{MANIFEST_FILE}"))
            fix = f"name a folder inside it: {', '.join(inner)}" if inner else f"it is incomplete: {_IMPORT_FIX}"
            raise DataError(f"shard folder without {MANIFEST_FILE}", file=folder, fix=fix) from FileNotFoundError(
                str(path)
            )

    @classmethod
    def load(cls, folder: Place, *, missing_shards: bool = False) -> Self:
        """The manifest of `folder`, whose tars are exactly those it lists.

        Args:
            missing_shards: some may be missing.
        Raises:
            DataError: as `read`; or a shard that is missing or unlisted.
        """
        manifest = cls.read(folder)
        files = names_in(folder)
        for entry in manifest.shards:
            if files is not None and entry.file not in files and not missing_shards:
                raise missing_shard(folder / entry.file)
        unlisted = manifest.unlisted_shards(folder, files)
        if unlisted:
            raise unlisted[0]
        return manifest

    def unlisted_shards(self, folder: Place, files: Iterable[str] | None = None) -> list[DataError]:
        """One problem per tar in `folder` that is not one of the manifest's; none where it cannot be listed.

        Args:
            files: all there, if known.
        """
        listed = {entry.file for entry in self.shards}
        files = names_in(folder) if files is None else files
        return [
            DataError("shard that the manifest does not list", file=folder / name, fix="move it out of the folder")
            for name in sorted(files or ())
            if name.endswith(".tar") and name not in listed
        ]

    @classmethod
    def _from_json(cls, data: bytes) -> Self:
        content = parse_json(data, _Content)
        checksums = content["format"] == MANIFEST_FORMAT
        for i, shard in enumerate(content["shards"]):
            _check_entry(f"shards[{i}]", shard, len(content["shapes"]), checksums)
        shapes = tuple((t, h, w) for t, h, w in content["shapes"])
        for where, names in ("shapes", shapes), ("shards", [shard["file"] for shard in content["shards"]]):
            if repeated := first_repeated(names):
                raise wrong(where, repeated, "each once")
        t, h, w = content["strides"]
        return cls(
            tokenizer=content["tokenizer"],
            codebook_size=content["codebook_size"],
            strides=(t, h, w),
            shapes=shapes,
            shards=tuple(ShardEntry(**shard) for shard in content["shards"]),
        )


# -- what the file holds -------------------------------------------------------------------------

_Size = Annotated[int, Field(ge=1, lt=1 << 32)]
_Sizes = Annotated[list[_Size], Field(min_length=3, max_length=3)]
_Bytes = Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]
_Numbers = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], FailFast()]


@with_config(extra="forbid")
class _Shard(TypedDict):
    file: Annotated[str, Field(pattern=f"^{_SHARD_FILE}$")]
    n_samples: _Size
    n_bytes: _Bytes
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    shapes: _Numbers
    text_lengths: Annotated[list[_Bytes], FailFast()]
    ends: NotRequired[_Numbers]
    checksums: NotRequired[_Numbers]


@with_config(extra="forbid")
class _Content(TypedDict):
    format: Literal["lumos-shards-1", "lumos-shards-2"]
    tokenizer: Annotated[str, Field(min_length=1)]
    codebook_size: Annotated[int, Field(ge=1, le=MAX_CODEBOOK_SIZE)]
    strides: _Sizes
    shapes: Annotated[list[_Sizes], Field(min_length=1)]
    shards: Annotated[list[_Shard], Field(min_length=1)]


def _check_entry(where: str, shard: _Shard, n_shapes: int, checksums: bool) -> None:
    """What the fields of one shard must be beside each other."""
    for name in "ends", "checksums":
        if (name in shard) != checksums:
            raise DataError("missing field" if checksums else "unknown field", where=f"{where}.{name}")
    for name, values in shard.items():
        if isinstance(values, list) and len(values) != shard["n_samples"]:
            got, expected = f"{len(values)} items", shard["n_samples"]
            raise DataError("wrong field", where=f"{where}.{name}", got=got, expected=expected)
    if (index := max(shard["shapes"])) >= n_shapes:
        raise wrong(f"{where}.shapes", index, f"at most {n_shapes - 1}")
    if checksums:
        ends = [0, *shard["ends"]]
        if any(one >= other for one, other in pairwise(ends)) or ends[-1] > shard["n_bytes"]:
            raise wrong(f"{where}.ends", shard["ends"], f"ascending numbers up to {shard['n_bytes']}")


def missing_shard(path: Place) -> DataError:
    return DataError("shard missing", file=path, fix=damage_fix(path.parent))


def damage_fix(folder: Place) -> str:
    return f"`lumos shards verify {folder}` lists all damage, and leaves it out with `--skip-bad --out NEW`"
