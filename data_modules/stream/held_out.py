"""Shards that are never trained on, for a validation of data that have none of their own.

    digest of each shard     1f.. 3c.. 52.. 7e.. 90.. a4.. c8.. ee..
    val_share: 0.25          ^^^^^^^^^ held out: the lowest ones, one at the least

The digest is of a shard's content and name, so that which are held out depends on neither the seed nor the order in
which they are listed: it looks like a draw, and all ranks and attempts make the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_modules.readers import Shards, bring_ahead
from data_modules.shards.manifest import Manifest
from data_modules.shards.metadata import Columns
from data_modules.shards.places import Place
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import BadSample
from lumos_pl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SomeShards:
    """Some shards of a set, as if they were all.

    Args:
        numbers: theirs in the whole set, ascending.
    """

    whole: Shards
    numbers: tuple[int, ...]
    manifest: Manifest

    @property
    def folder(self) -> Place:
        return self.whole.folder

    def file(self, index: int) -> Place:
        return self.whole.file(self.numbers[index])

    def bring(self, index: int) -> None:
        bring_ahead(self.whole, self.numbers[index])

    def read(self, index: int) -> list[ShardSample]:
        return self.whole.read(self.numbers[index])

    def read_each(self, index: int) -> Sequence[ShardSample | BadSample]:
        read: Sequence[ShardSample | BadSample]
        read = getattr(self.whole, "read_each", self.whole.read)(self.numbers[index])
        return read

    def columns(self) -> Columns:
        """Of the shards of one's own that have none, none."""
        table = self.whole.manifest.table
        read = getattr(self.whole, "columns", None)
        columns = Columns(n_samples=self.whole.manifest.n_samples) if read is None else read()
        shards = np.repeat(np.arange(len(table)), table.n_samples)
        taken: Columns = columns.take(np.isin(shards, self.numbers))
        return taken


def split(shards: Shards, share: float, kind: str) -> tuple[SomeShards, SomeShards]:
    """The shards to train on, and those that are held out.

    Args:
        share: of the shards, to the nearest number of them; at least one is held out, and one is not.
        kind: of the samples, for the message.
    Raises:
        ConfigError: there is one alone.
    """
    table = shards.manifest.table
    n_shards = len(table)
    if n_shards == 1:
        raise ConfigError(
            "a single shard, and none left to hold out",
            file=shards.folder,
            where="data.val_share",
            got=f"{share:g}",
            expected=f"two shards of {kind}s or more",
            fix="write smaller shards, or give data.val_root",
        )
    n_held = min(max(1, round(share * n_shards)), n_shards - 1)
    drawn = [hashlib.sha256(b"%s %s" % named).digest() for named in zip(table.digests, table.files, strict=True)]
    held = frozenset(sorted(range(n_shards), key=drawn.__getitem__)[:n_held])
    trained = [number for number in range(n_shards) if number not in held]
    return _some(shards, trained, "trained on"), _some(shards, sorted(held), "held out")


def _some(shards: Shards, numbers: Sequence[int], what: str) -> SomeShards:
    whole = shards.manifest
    identity = f"{whole.fingerprint} {what} {' '.join(map(str, numbers))}"
    manifest = whole.taking(numbers).identified(hashlib.sha256(identity.encode()).hexdigest())
    return SomeShards(whole=shards, numbers=tuple(numbers), manifest=manifest)
