"""Which folders of shards a root names: one, or several read as one data set."""

from __future__ import annotations

import glob
import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from data_modules.shards.manifest import MANIFEST_FILE, Manifest, is_folder
from data_modules.shards.manifest_file import SideFile
from data_modules.shards.metadata import Columns, read_columns
from data_modules.shards.places import Access, Place, place_of
from data_modules.shards.reading import RETRY, bring_shard
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import BadSample, read_each, read_shard
from data_modules.shards.table import ShardTable
from data_modules.shards.writer import KIND_FOLDERS
from data_modules.tokenizing.parts import part_folders
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import is_url


def shard_folders(root: str, kind: str, *, by_kind: bool = False, access: Access | None = None) -> list[Place]:
    """The folders of one kind under a root; whether they are there, and whole, is not looked at.

    Args:
        root: a folder or its URL, or a pattern like `data/part-*` for all that match, in the order of their names.
            A folder that was tokenized in parts stands for all of them.
        kind: `image` or `video`. Shards of this kind lie in `images` or `videos` of the root, or, where
            it has no such folder, in the root itself.
        by_kind: they lie in such a folder always. Of several roots, those with shards of the other kind
            alone are left out.
        access: of a URL.
    Raises:
        DataError: a pattern that nothing matches, or parts that are not all there.
        TemporaryError: a store does not answer.
    """
    own, other = (f"{kind}s", next(name for name in KIND_FOLDERS if name != f"{kind}s"))
    parts = _parts(root, access)
    if parts == [folder := place_of(root, access)]:
        return [folder / own if by_kind or is_folder(folder / own) else folder]
    return [
        part / own if by_kind or is_folder(part / own) else part
        for part in parts
        if is_folder(part / own) or not is_folder(part / other)
    ]


def every_folder(roots: Sequence[str]) -> tuple[Place, dict[Path, Place]]:
    """The folders of shards of either kind under some roots; whether they are there, and whole, is not looked at.

    Args:
        roots: as of `shard_folders`, each; either paths or URLs.
    Returns:
        the folder that all roots have in common, and the folders of shards by their paths from there: `.` for a root.
    Raises:
        DataError: a pattern that nothing matches, or parts that are not all there.
        ConfigError: paths beside URLs, or URLs of several stores.
    """
    access = Access(where="DIR")
    parts = [part for root in roots for part in _parts(root, access)]
    names = {str(part.resolve() if isinstance(part, Path) else part): part for part in parts}
    kinds = {urlsplit(name)[:2] if is_url(name) else ("", "") for name in names}
    if len(kinds) > 1:
        raise ConfigError(
            "folders of several stores at once", where=access.where, fix="name those of one store at a time"
        )
    common = os.path.commonpath([urlsplit(name).path if is_url(name) else name for name in names])
    scheme, host = next(iter(kinds))
    folder = place_of(f"{scheme}://{host}{common}".rstrip("/"), access) if scheme else Path(common)
    return folder, {
        Path(os.path.relpath(urlsplit(name).path if scheme else name, common)) / kind: part / kind
        for name, part in names.items()
        for kind in _kinds_inside(part)
    }


def _kinds_inside(part: Place) -> list[str]:
    """The names of the folders of shards in a folder; the empty one for itself."""
    inner = [kind for kind in KIND_FOLDERS if is_folder(part / kind)]
    return inner if inner and not (part / MANIFEST_FILE).exists() else ["", *inner]


def _parts(root: str, access: Access | None) -> list[Place]:
    place = place_of(root, access)
    if not _is_pattern(root):
        return part_folders(place) or [place]
    parts: list[Place]
    if isinstance(place, Path):
        matches = sorted(glob.glob(str(place)))  # noqa: PTH207 (it may begin with a slash, which Path.glob refuses)
        parts = [Path(match) for match in matches if Path(match).is_dir()]
    else:
        parts = list(place.matching())
    if not parts:
        raise DataError("no folder matches", file=root) from FileNotFoundError(root)
    return parts


def _is_pattern(root: str) -> bool:
    return glob.has_magic(root) and (is_url(root) or not Path(root).is_dir())


@dataclass(frozen=True, kw_only=True)
class FolderShards:
    """A folder of shards; what is read is verified against the manifest.

    Args:
        retry: of reads that fail for a while.
    """

    folder: Place
    manifest: Manifest
    retry: RetryConfig = RETRY

    def file(self, index: int) -> Place:
        return self._folder_of(index) / self.manifest.table.file(index)

    def bring(self, index: int) -> None:
        """Have a shard come to this machine, if it lies elsewhere: it is read soon."""
        bring_shard(self.file(index), self.manifest.table, index)

    def read(self, index: int) -> list[ShardSample]:
        return read_shard(self._folder_of(index), self.manifest, index, self.retry)

    def read_each(self, index: int) -> list[ShardSample | BadSample]:
        return read_each(self._folder_of(index), self.manifest, index, self.retry)

    def columns(self) -> Columns:
        return read_columns(self.folder, self.manifest, self.retry)

    def _folder_of(self, index: int) -> Place:
        """Where a shard lies."""
        return self.folder


@dataclass(frozen=True, kw_only=True)
class JoinedShards(FolderShards):
    """Several folders as if all their shards lay in one; `folder` is what they are called together."""

    folders: tuple[Place, ...]
    starts: tuple[int, ...]
    metadata: tuple[SideFile | None, ...]

    @classmethod
    def of(cls, folder: Place, parts: Sequence[FolderShards]) -> Self:
        starts = accumulate((len(part.manifest.shards) for part in parts[:-1]), initial=0)
        manifest = join_manifests([part.manifest for part in parts])
        folders = tuple(part.folder for part in parts)  # without their manifests, which would be there twice
        return cls(
            folder=folder,
            folders=folders,
            starts=tuple(starts),
            manifest=manifest,
            metadata=tuple(part.manifest.metadata for part in parts),
            retry=parts[0].retry,
        )

    def columns(self) -> Columns:
        ends = (*self.starts[1:], len(self.manifest.shards))
        parts = zip(self.folders, self.metadata, self.starts, ends, strict=True)
        return Columns.joined(
            [
                read_columns(folder, replace(self.manifest.taking(range(start, end)), metadata=metadata), self.retry)
                for folder, metadata, start, end in parts
            ]
        )

    def _folder_of(self, index: int) -> Place:
        return self.folders[bisect_right(self.starts, index) - 1]


def join_manifests(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest over the shards of all, which are of one visual tokenizer; the files' names may repeat."""
    first, *others = manifests
    if not others:
        return first
    shapes = {shape: None for manifest in manifests for shape in manifest.shapes}
    numbers = {shape: number for number, shape in enumerate(shapes)}
    tables = [manifest.table.numbered([numbers[shape] for shape in manifest.shapes]) for manifest in manifests]
    whole = replace(first, shapes=tuple(shapes), shards=ShardTable.joined(tables), metadata=None)
    names = " ".join(manifest.fingerprint for manifest in manifests)
    return whole.identified(hashlib.sha256(names.encode()).hexdigest())
