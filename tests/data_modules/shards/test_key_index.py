from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

import pytest

from data_modules.shards.key_index import KeyIndex
from data_modules.shards.writer import ShardWriter
from lumos_pl.errors import DataError
from tests.data_modules.shards.shard_files import make_sample, open_writer
from tests.refusals import refused


@pytest.mark.parametrize("in_memory", [1, 7, 1000])
def test_a_key_is_found_by_the_number_of_its_shard(in_memory: int) -> None:
    index = KeyIndex(TemporaryFile, in_memory=in_memory)
    for number in range(20):
        keys = [f"{number}-{i}" for i in range(5)]
        assert index.find(keys) == [None] * 5
        index.add(keys, number)
    asked = [f"{number}-{i}" for number in range(25) for i in (0, 4)]
    assert index.find(asked) == [number if number < 20 else None for number in range(25) for _ in range(2)]
    index.close()


@pytest.mark.parametrize("in_memory", [1, 1000])
def test_a_writer_knows_the_keys_of_all_its_shards(
    tmp_path: Path, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it put away, too; nothing of what it wrote is left, nor any other file."""
    monkeypatch.setattr(ShardWriter, "KEYS_IN_MEMORY", in_memory)
    with (
        refused(DataError, what="two samples of one key", where="sample clip-1"),
        open_writer(tmp_path, samples_per_shard=2) as writer,
    ):
        for index in (0, 1, 2, 3, 4, 1):
            writer.add(make_sample(index))
    assert list(tmp_path.iterdir()) == []
