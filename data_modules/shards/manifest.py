"""The manifest of a shard folder: what every file must hold, known before any is opened.

A tar alone cannot tell that samples are missing: readers end quietly at a damaged header. The
manifest holds each shard's size, sha256 and sample count, and each sample's shape and text length,
so that damage is found, and a stream planned and resumed, without opening any shard.

    lumos-shards-3     manifest.json: the shards; manifest.npy: a row for each sample (`sample_rows`), mapped
    lumos-shards-2     manifest.json: the shards with lists of their samples' numbers: up to `MOST_IN_JSON` samples
    lumos-shards-1     the same of before there were checksums

What tells one data set from another is the sha256 of the manifest.json, whose digests stand for all the rest. One that
was written anew in another form says which it was before (`identity`), and stays the same data set.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.manifest_file import (
    MAX_FILE_BYTES,
    WITH_LISTS,
    WITH_ROWS_FILE,
    WITHOUT_CHECKSUMS,
    ManifestContent,
    SideFile,
    shards_with_lists,
    shards_with_rows,
)
from data_modules.shards.places import Place, local_file, names_in, read_whole
from data_modules.shards.sample_rows import ROWS_FILE, digest_of_content, rows_content
from data_modules.shards.table import ROW, ShardEntry, ShardTable
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import first_repeated, parse_json, wrong
from lumos_pl.machinery.own_files import RECORD, note, remove_partials

MANIFEST_FILE = "manifest.json"
MOST_IN_JSON = 1 << 18  # samples: 10 MB that are read in a third of a second
_IMPORT_FIX = "make it with `lumos tokenize` (own media; without images: data.kind=video) or `lumos import-tokens`"

Shape = tuple[int, int, int]


class ManifestFile(NamedTuple):
    """A file that a manifest is made of, its content whole or in parts that are made as they are asked for."""

    name: str
    content: Any  # bytes, or an iterator of such
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Self:
        return cls(name, content, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one shard folder must hold.

    Args:
        tokenizer: fingerprint of the visual tokenizer.
        codebook_size: every code is below it.
        strides: RGB frames and pixels per latent step in t, h, w.
        shapes: the latent shapes [T, H, W] that occur.
        shards: one entry per file, in the order of writing; held as a `ShardTable`, whatever is given.
        metadata: what else is known of the samples; None: nothing.
    """

    tokenizer: str
    codebook_size: int
    strides: Shape
    shapes: tuple[Shape, ...]
    shards: Sequence[ShardEntry]
    metadata: SideFile | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shards, ShardTable):
            object.__setattr__(self, "shards", ShardTable.of(self.shards))

    @property
    def table(self) -> ShardTable:
        """The shards, for who asks of many at once."""
        assert isinstance(self.shards, ShardTable)
        return self.shards

    @cached_property
    def n_samples(self) -> int:
        return int(self.table.n_samples.sum())

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the data set: sha256 over the content."""
        return hashlib.sha256(self.content).hexdigest()

    def identified(self, fingerprint: str) -> Self:
        """This manifest, whose fingerprint is known: writing millions of samples out to find it takes minutes."""
        vars(self)["fingerprint"] = fingerprint
        return self

    def taking(self, numbers: Sequence[int]) -> Self:
        """Some of the shards, as a data set of its own."""
        return replace(self, shards=self.table.take(numbers))

    def selecting(self, selected: NDArray[np.bool_]) -> Self:
        """The same data set, of whose samples some alone are to be used; a selection of before holds on.

        Args:
            selected: of every sample, in the order of the shards; shape [n_samples].
        """
        if selected.shape != (self.n_samples,):
            raise ValueError(f"selected: got shape {list(selected.shape)}, expected [{self.n_samples}]")
        return replace(self, shards=self.table.selecting(selected)).identified(self.fingerprint)

    @property
    def content(self) -> bytes:
        """Of manifest.json: in the form that it was read in, or else that fits so many samples."""
        content: bytes = self.files()[-1].content
        return content

    def files(self) -> list[ManifestFile]:
        """What the folder must have beside the shards; the manifest.json, without which it is none, last."""
        has_rows_file, identity = vars(self).get("read_as", (self.n_samples > MOST_IN_JSON, None))
        if has_rows_file:
            return self._with_rows_file(identity)
        return [ManifestFile.of(MANIFEST_FILE, b"".join(self._content_with_lists()))]

    def _content_with_lists(self) -> Iterator[bytes]:
        """In parts, of a shard each: many shards' lists are large."""
        has_checksums = self.table.dtype == ROW
        before, _, after = self._json(WITH_LISTS if has_checksums else WITHOUT_CHECKSUMS, []).partition(b'"shards": []')
        yield before + b'"shards": ['
        for number, shard in enumerate(self.shards):
            entry = asdict(shard)
            for name in () if has_checksums else ("ends", "checksums"):
                del entry[name]
            yield b", " * (number > 0) + json.dumps(entry, sort_keys=True, default=array.tolist).encode()
        yield b"]" + after

    def _with_rows_file(self, identity: str | None) -> list[ManifestFile]:
        table = self.table
        rows = zip(table.names(), table.n_samples.tolist(), table.n_bytes.tolist(), table.digests.tolist(), strict=True)
        entries = [
            {"file": file, "n_samples": n, "n_bytes": n_bytes, "sha256": digest.decode()}
            for file, n, n_bytes, digest in rows
        ]
        n_bytes, sha256 = digest_of_content(rows_content(table))
        columns = list(table.dtype.names or ())
        more = {"samples": {"columns": columns, "n_bytes": n_bytes, "sha256": sha256}}
        content = self._json(WITH_ROWS_FILE, entries, **more, **({} if identity is None else {"identity": identity}))
        return [ManifestFile(ROWS_FILE, rows_content(table), sha256), ManifestFile.of(MANIFEST_FILE, content)]

    def _json(self, form: str, entries: list[dict[str, Any]], **more: Any) -> bytes:
        names = "tokenizer", "codebook_size", "strides", "shapes"
        content = {"format": form, **{name: getattr(self, name) for name in names}, "shards": entries, **more}
        if self.metadata is not None:
            content["metadata"] = asdict(self.metadata)
        return json.dumps(content, sort_keys=True).encode() + b"\n"

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, each file whole or not at all."""
        for file in self.files():
            write_atomically(folder / file.name, file.content)

    @classmethod
    def upgrade(cls, folder: Path) -> bool:
        """Write a folder's manifest in the newest form; it stays the same data set, and its shards stay as they are.

        Killed at any moment, the folder has its manifest in one of both forms. The old one, which is as it was written
        here and could be made anew to the byte, is replaced.

        Returns:
            False: it has the newest form already.
        Raises:
            DataError: it is not as it was written here, so that the new one could not tell what it was.
        """
        manifest = cls.read(folder)
        if vars(manifest)["read_as"][0]:
            return False
        if manifest.identity_in_lists() != manifest.fingerprint:
            what, fix = "manifest in a form of its own", "leave it: it is read all the same"
            raise DataError(what, file=folder / MANIFEST_FILE, expected="the form in which it is written", fix=fix)
        remove_partials(folder, of=lambda name: name in (MANIFEST_FILE, ROWS_FILE, RECORD))  # of a killed one
        with naming(folder / MANIFEST_FILE):
            note(folder / MANIFEST_FILE, manifest.fingerprint)
        for file in manifest._with_rows_file(manifest.fingerprint):
            write_atomically(folder / file.name, file.content)
        return True

    def identity_in_lists(self) -> str:
        """The identity that the data set has where its manifest is in the form with lists."""
        return digest_of_content(self._content_with_lists())[1]

    @property
    def former(self) -> str | None:
        """The identity that it keeps of a form in which it was before; None: of none."""
        identity: str | None = vars(self).get("read_as", (False, None))[1]
        return identity

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
            return cls.parse(data, lambda rows: local_file(folder / ROWS_FILE, rows.sha256, rows.n_bytes))

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
    def parse(cls, data: bytes, rows_file: Callable[[SideFile], Path]) -> Self:
        """The manifest that a manifest.json says.

        Args:
            rows_file: where the file of its samples' rows lies on this machine; asked for where there is one.
        Raises:
            DataError: the first field that is wrong.
        """
        content = parse_json(data, ManifestContent)
        shards: Sequence[ShardEntry]
        if content["format"] == WITH_ROWS_FILE:
            shards = shards_with_rows(content, rows_file)
        else:
            shards = shards_with_lists(content)
        shapes = tuple((t, h, w) for t, h, w in content["shapes"])
        for where, names in ("shapes", shapes), ("shards", [shard["file"] for shard in content["shards"]]):
            if repeated := first_repeated(names):
                raise wrong(where, repeated, "each once")
        t, h, w = content["strides"]
        manifest = cls(
            tokenizer=content["tokenizer"],
            codebook_size=content["codebook_size"],
            strides=(t, h, w),
            shapes=shapes,
            shards=shards,
            metadata=SideFile(**content["metadata"]) if "metadata" in content else None,
        )
        vars(manifest)["read_as"] = content["format"] == WITH_ROWS_FILE, content.get("identity")
        return manifest.identified(content.get("identity") or hashlib.sha256(data).hexdigest())

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
        for name in () if missing_shards else manifest.table.names():
            if files is not None and name not in files:
                raise missing_shard(folder / name)
        unlisted = manifest.unlisted_shards(folder, files)
        if unlisted:
            raise unlisted[0]
        return manifest

    def unlisted_shards(self, folder: Place, files: Iterable[str] | None = None) -> list[DataError]:
        """One problem per tar in `folder` that is not one of the manifest's; none where it cannot be listed.

        What is hidden is no shard: some systems leave a `._NAME` beside each file that they copy.

        Args:
            files: all there, if known.
        """
        files = names_in(folder) if files is None else files
        tars = {name for name in files or () if name.endswith(".tar") and not name.startswith(".")}
        return [
            DataError("shard that the manifest does not list", file=folder / name, fix="move it out of the folder")
            for name in sorted(tars.difference(self.table.names()))
        ]


def missing_shard(path: Place) -> DataError:
    return DataError("shard missing", file=path, fix=damage_fix(path.parent))


def damage_fix(folder: Place) -> str:
    command = shlex.join(["lumos", "shards", "verify", str(folder)])
    return f"`{command}` lists all damage, and leaves it out with `--skip-bad --out NEW`"


def is_folder(place: Place) -> bool:
    """Whether there is a folder that may hold shards; in a store, where folders are but parts of names, a manifest."""
    return place.is_dir() if isinstance(place, Path) else (place / MANIFEST_FILE).exists()
