"""What reads a root of data: a registry of its own, to which anybody may add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from data_modules.manifest import MANIFEST_FILE, Manifest
from data_modules.reading import is_damage, read_patiently
from data_modules.shard_folders import FolderShards, JoinedShards, shard_folders
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.retrying import RetryConfig

if TYPE_CHECKING:
    from data_modules.config import DataConfig
    from data_modules.shard_sample import ShardSample


@runtime_checkable
class Shards(Protocol):
    """What can be planned and read: folders, or samples in memory."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    def file(self, index: int) -> Path: ...

    def read(self, index: int) -> list[ShardSample]: ...


Reader = Callable[[str, str, "DataConfig", TokenLayout], Shards]
"""From `data.root` or `data.val_root`, the kind of samples (`image` or `video`), the settings and the vocabulary, the
shards of that kind; `MemoryShards.of` makes some of samples that are at hand."""


def read_folders(root: str, kind: str, config: DataConfig, layout: TokenLayout) -> Shards:
    """Folders of shards with their manifests, see `shard_folders`."""
    folders = shard_folders(root, kind, by_kind=config.kind == "joint")
    retry = config.patience
    manifests = (load_manifest(folder, retry, missing_shards=config.max_bad_samples > 0) for folder in folders)
    parts = [
        FolderShards(folder=folder, manifest=manifest, retry=retry)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    for part in parts:
        check_fits_layout(part, layout)
    check_same_tokenizer(parts)
    return parts[0] if len(parts) == 1 else JoinedShards.of(Path(root), parts)


def load_manifest(folder: Path, retry: RetryConfig, *, missing_shards: bool = False) -> Manifest:
    """The manifest of a folder; a read that fails for a while is tried again, and what looks damaged is read twice.

    Args:
        missing_shards: shards may be missing, and are found to be when they are come to.
    Raises:
        DataError: see `Manifest.load`.
        TemporaryError: see `read_patiently`.
    """

    def load() -> Manifest:
        return Manifest.load(folder, missing_shards=missing_shards)

    file = folder / MANIFEST_FILE
    try:
        return read_patiently(load, file, retry, was_there=False)
    except DataError as error:
        if not is_damage(error):
            raise
        return read_patiently(load, file, retry, was_there=False)


READERS: dict[str, Reader] = {"shards": read_folders}


def open_shards(root: str, kind: str, config: DataConfig, layout: TokenLayout) -> Shards:
    """What the configuration's reader makes of a root.

    Raises:
        ConfigError: a reader of one's own gives no shards.
    """
    shards = READERS[config.reader](root, kind, config, layout)
    if not isinstance(shards, Shards):
        got, expected = type(shards).__name__, "folder, manifest, file(index) and read(index), as of MemoryShards"
        raise ConfigError("no shards", where=f"data.reader {config.reader}", got=got, expected=expected)
    check_fits_layout(shards, layout)
    return shards


def check_fits_layout(shards: Shards, layout: TokenLayout) -> None:
    """Raise DataError for shards of other codes than the vocabulary's."""
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
    """Raise DataError for data sets whose codes different visual tokenizers made."""
    for first, shards in pairwise(sets):
        if shards.manifest.tokenizer != first.manifest.tokenizer:
            raise DataError(
                "shards of different visual tokenizers",
                file=shards.folder,
                got=shards.manifest.tokenizer,
                expected=f"{first.manifest.tokenizer}, as in {first.folder}",
                fix="tokenize all data with one tokenizer",
            )
