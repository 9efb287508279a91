"""Shards: what is written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.tariterators import tarfile_samples

from data_modules.shards.check import verify_shards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.sample import resolve_text
from data_modules.shards.shards import read_shard
from lumos_pl.errors import ConfigError, DataError
from tests.data_modules.shards.shard_files import (
    IDS,
    SHAPES,
    assert_same,
    make_sample,
    open_writer,
    write,
)
from tests.refusals import refused

# -- what is written comes back ------------------------------------------------------------------


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = write(tmp_path)
    manifest = Manifest.load(tmp_path)
    assert manifest == written and manifest.fingerprint == written.fingerprint
    assert [shard.n_samples for shard in manifest.shards] == [2, 2, 1] and manifest.n_samples == 5
    assert manifest.shapes == tuple(SHAPES)
    assert manifest.shards[0].shapes.tolist() == [0, 1]
    assert manifest.shards[0].text_lengths.tolist() == [len("a blue circle rises, № 0") + 2, 6]  # № takes 3 bytes
    samples = [sample for index in range(3) for sample in read_shard(tmp_path, manifest, index)]
    for index, sample in enumerate(samples):
        assert_same(sample, make_sample(index))
    assert verify_shards(tmp_path) == []


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    read = list(tarfile_samples([{"url": str(tmp_path / shard.file)} for shard in manifest.shards]))
    assert [sample["__key__"] for sample in read] == [f"clip-{index}" for index in range(5)]
    assert np.array_equal(np.load(io.BytesIO(read[3]["codes.npy"])), make_sample(3).codes)
    assert json.loads(read[3]["json"])["tokenizer"] == "toy"


def test_equal_samples_give_equal_bytes_and_another_code_another_identity(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    for name in (MANIFEST_FILE, *(shard.file for shard in first.shards)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with open_writer(tmp_path / "c") as writer:
        writer.add(make_sample(0))
    changed = make_sample(0).codes.copy()
    changed[2, 3, 7] ^= 1
    with open_writer(tmp_path / "d") as other:
        other.add(make_sample(0, codes=changed))
    assert writer.manifest.fingerprint != other.manifest.fingerprint


def test_a_shard_ends_at_its_size_too(tmp_path: Path) -> None:
    assert len(write(tmp_path, samples_per_shard=100, max_shard_bytes=4000).shards) == 3


def test_codes_that_are_a_view_are_written_in_order(tmp_path: Path) -> None:
    codes = make_sample(0).codes
    with open_writer(tmp_path) as writer:
        writer.add(make_sample(0, codes=np.asfortranarray(codes)))
    assert np.array_equal(read_shard(tmp_path, writer.manifest, 0)[0].codes, codes)


def test_numbers_are_written_out_in_digits() -> None:
    assert resolve_text(IDS, frames=84, fps=5, digit_offset=100) == (17, 3, 108, 104, 5, 105, 9)
    assert resolve_text((1, 2), frames=84, fps=5, digit_offset=100) == (1, 2)


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"key": "a.b"}, {"where": "sample a.b: key"}),
        ({"key": "../a"}, {"where": "sample ../a: key"}),
        ({"key": "x" * 81}, {"got": "'xxxxxxxxxxxx...xxxxxxxxxxxxx'"}),
        (
            {"codes": np.full((3, 4, 8), 240, np.uint16)},
            {"where": "sample clip-0: codes[0, 0, 0]", "got": "240", "expected": "0 to 239"},
        ),
        (
            {"codes": np.zeros((3, 4, 8), np.int64)},
            {"where": "sample clip-0: codes", "got": "int64 [3, 4, 8]", "expected": "uint16 [T, H, W]"},
        ),
        ({"codes": np.zeros((4, 8), np.uint16)}, {"where": "sample clip-0: codes", "got": "uint16 [4, 8]"}),
        ({"text": " \n"}, {"where": "sample clip-0: text"}),
        ({"text": "a\0b"}, {"where": "sample clip-0: text"}),
        ({"text": "\ud800"}, {"where": "sample clip-0: text"}),
        ({"text": ()}, {"where": "sample clip-0: text"}),
        ({"text": (1, "{duration}")}, {"where": "sample clip-0: text[1]"}),
        ({"text": (1, -1)}, {"where": "sample clip-0: text[1]"}),
        ({"text": (True,)}, {"where": "sample clip-0: text[0]"}),
        ({"frames": 13}, {"where": "sample clip-0: frames", "got": "13 beside codes [3, 4, 8]"}),
        ({"frames": 5}, {"where": "sample clip-0: frames", "got": "5 beside codes [3, 4, 8]"}),
        ({"height": 40}, {"where": "sample clip-0: height", "got": "40 beside codes [3, 4, 8]"}),
        ({"width": 63}, {"where": "sample clip-0: width", "got": "63 beside codes [3, 4, 8]"}),
        ({"fps": 0}, {"where": "sample clip-0: fps", "got": "0"}),
        ({"fps": 12.0}, {"where": "sample clip-0: fps", "got": "12.0"}),
        ({"duration": True}, {"where": "sample clip-0: duration", "got": "True"}),
        ({"source": ""}, {"where": "sample clip-0: source"}),
    ],
)
def test_writer_refuses_a_wrong_sample_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], fields: dict[str, str]
) -> None:
    folder = tmp_path / "shards"
    with (
        refused(DataError, **fields),
        open_writer(folder, samples_per_shard=1) as writer,
    ):
        writer.add(make_sample(1))
        writer.add(make_sample(0, **changes))
    assert list(folder.iterdir()) == []


def test_writer_refuses_a_second_sample_of_one_key(tmp_path: Path) -> None:
    with (
        refused(DataError, where="sample clip-0"),
        open_writer(tmp_path, samples_per_shard=1) as writer,
    ):
        writer.add(make_sample(0))
        writer.add(make_sample(0))


def test_writer_refuses_a_folder_in_use_an_empty_data_set_and_wrong_limits(tmp_path: Path) -> None:
    write(tmp_path / "full")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "full").iterdir())
    with refused(DataError, file="full"):
        write(tmp_path / "full")
    assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "full").iterdir())
    with refused(DataError, file="none"):
        write(tmp_path / "none", n=0)
    with refused(ConfigError, where="samples_per_shard"):
        write(tmp_path / "wrong", samples_per_shard=0)


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls = 0

    def fsync(_descriptor: int) -> None:  # twice for each of three shards and the manifest
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with refused(DataError, got="No space left on device"):
        write(tmp_path / "shards")
    with pytest.raises(DataError):
        Manifest.load(tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []
