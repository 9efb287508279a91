"""Readers, which open a root of data: a registry that anybody may add to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from data_modules.shards.folders import FolderShards, JoinedShards, shard_folders
from data_modules.shards.manifest import Manifest
from data_modules.shards.places import Place, place_of
from data_modules.shards.reading import read_twice
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.store import is_url

if TYPE_CHECKING:
    from data_modules.config import DataConfig
    from data_modules.shards.sample import ShardSample


@runtime_checkable
class Shards(Protocol):
    """Data that can be planned and read: folders, or samples in memory."""

    @property
    def folder(self) -> Place: ...

    @property
    def manifest(self) -> Manifest: ...

    def file(self, index: int) -> Place: ...

    def read(self, index: int) -> list[ShardSample]: ...


Reader = Callable[[str, str, "DataConfig", TokenLayout], Shards]
"""Called with `data.root` or `data.val_root`, the kind of samples (`image` or `video`), the settings and vocabulary;
returns the shards of that kind. `MemoryShards.of` makes some from samples in memory."""


def read_folders(root: str, kind: str, config: DataConfig, layout: TokenLayout) -> Shards:
    """Folders of shards with their manifests, see `shard_folders`."""
    if is_url(root):
        config.cache.opened().sweep()
    folders = shard_folders(root, kind, by_kind=config.kind == "joint", access=config.access)
    allowed = config.max_bad_samples > 0
    parts = [
        FolderShards(folder=folder, manifest=Manifest.load(folder, missing_shards=allowed), retry=config.patience)
        for folder in folders
    ]
    for part in parts:
        check_fits_layout(part, layout)
    check_same_tokenizer(parts)
    return parts[0] if len(parts) == 1 else JoinedShards.of(place_of(root), parts)


def bring_ahead(shards: Shards, index: int) -> None:
    """Start bringing a shard to this machine before it is read, if that takes time and the shards can."""
    bring = getattr(shards, "bring", None)  # optional in custom shards
    if bring is not None:
        bring(index)


READERS: dict[str, Reader] = {"shards": read_folders}


def open_shards(root: str, kind: str, config: DataConfig, layout: TokenLayout, *, was_there: bool = False) -> Shards:
    """The shards that the configured reader finds at a root. Temporary failures are retried, damage is read twice.

    Args:
        was_there: the root is known to have existed, as in a resumed run, so its absence may be temporary.
    Raises:
        ConfigError: a custom reader returned something that is not shards.
        DataError: from the reader.
        TemporaryError: see `read_patiently`.
    """
    read = partial(READERS[config.reader], root, kind, config, layout)
    shards = read_twice(read, place_of(root), config.patience, was_there=was_there)
    if not isinstance(shards, Shards):
        got, expected = type(shards).__name__, "folder, manifest, file(index) and read(index), as of MemoryShards"
        raise ConfigError("no shards", where=f"data.reader {config.reader}", got=got, expected=expected)
    check_fits_layout(shards, layout)
    return shards


def check_fits_layout(shards: Shards, layout: TokenLayout) -> None:
    """Raise DataError for shards whose codes are not the vocabulary's."""
    manifest = shards.manifest
    for what, got, expected in (
        ("codebook size", manifest.codebook_size, layout.codebook_size),
        ("strides", manifest.strides, layout.strides),
    ):
        if got != expected:
            raise DataError(
                f"shards of another {what} than the layout's",
                file=shards.folder,
                got=f"{got} (tokenizer {manifest.tokenizer})",
                expected=f"{expected} (layout {layout.name})",
                fix="set layout.codebook_size and layout.strides to the shards', or give other shards",
            )


def check_same_tokenizer(sets: Sequence[Shards]) -> None:
    """Raise DataError for data sets whose codes were made by different visual tokenizers."""
    for first, shards in pairwise(sets):
        if shards.manifest.tokenizer != first.manifest.tokenizer:
            raise DataError(
                "shards of different visual tokenizers",
                file=shards.folder,
                got=shards.manifest.tokenizer,
                expected=f"{first.manifest.tokenizer}, as in {first.folder}",
                fix="tokenize all data with one tokenizer",
            )
