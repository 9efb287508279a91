"""The newest form of a manifest: rows in a mapped file; the same data set as in any other form."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.config import SourceConfig
from data_modules.shards import manifest as manifest_module
from data_modules.shards.check import skip_bad, verify_shards
from data_modules.shards.folders import FolderShards, JoinedShards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.manifest_file import SideFile
from data_modules.shards.sample_rows import ROWS_FILE
from data_modules.shards.shards import read_shard
from data_modules.shards.writer import default_shard_size, remove_shards
from data_modules.stream.held_out import split
from data_modules.stream.plan import StreamPlan
from experiments.cli import main
from lumos_pl.errors import DataError
from lumos_pl.layout import compact_layout
from tests.data_modules.shards.shard_files import assert_same, make_sample, write
from tests.refusals import refused

N = 7


def without_checksums(folder: Path) -> None:
    """Write the manifest as it was before there were checksums."""
    manifest = Manifest.read(folder)
    shards = tuple(replace(shard, ends=(), checksums=()) for shard in manifest.shards)
    replace(manifest, shards=shards).save(folder)


@pytest.fixture(params=["lists", "lists without checksums"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write(tmp_path / "old", N)
    if request.param != "lists":
        without_checksums(tmp_path / "old")
    return tmp_path / "old"


def first_batches(manifest: Manifest, **settings: Any) -> list[Any]:
    config = SourceConfig(**{"batch_size": 2, "frames": 9, "streams": 2, **settings})
    walk = StreamPlan(manifest, config, compact_layout(), kind="video", seed=3).walk()
    return [walk.batch(index) for index in range(20)]


def test_an_upgraded_folder_is_the_same_data_set(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, tars = Manifest.load(old), {file.name: file.read_bytes() for file in old.glob("*.tar")}
    assert main(["shards", "upgrade", str(old)]) == 0
    after = Manifest.load(old)
    assert (old / ROWS_FILE).is_file() and json.loads((old / MANIFEST_FILE).read_bytes())["format"] == "lumos-shards-3"
    assert after == before and after.fingerprint == before.fingerprint
    assert first_batches(after) == first_batches(before)
    assert {file.name: file.read_bytes() for file in old.glob("*.tar")} == tars
    for index in range(N):
        assert_same(read_shard(old, after, index // 2)[index % 2], make_sample(index))
    assert verify_shards(old) == []
    assert main(["shards", "upgrade", str(old)]) == 0
    assert "already" in capsys.readouterr().out
    assert Manifest.load(old).fingerprint == before.fingerprint


def test_what_is_taken_of_it_is_a_data_set_of_its_own(old: Path, tmp_path: Path) -> None:
    Manifest.upgrade(old)
    (old / "shard-000001.tar").write_bytes(b"damaged")
    assert skip_bad(old, tmp_path / "out", most_bad=0.5) == (N - 2, 2)
    saved = Manifest.load(tmp_path / "out")
    assert saved.fingerprint != Manifest.load(old).fingerprint
    assert verify_shards(tmp_path / "out") == []


def test_an_upgraded_folder_is_removed_whole(old: Path) -> None:
    Manifest.upgrade(old)
    remove_shards(old)
    assert not list(old.glob("*.tar")) and not (old / MANIFEST_FILE).exists() and not (old / ROWS_FILE).exists()


def test_only_what_was_written_here_is_upgraded(tmp_path: Path) -> None:
    """Else the new manifest could not be held against what it was."""
    write(tmp_path)
    file = tmp_path / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_bytes()), indent=1))
    before = Manifest.load(tmp_path).fingerprint
    with refused(DataError, file=file):
        Manifest.upgrade(tmp_path)
    assert Manifest.load(tmp_path).fingerprint == before


def test_a_folder_says_of_no_other_that_it_was_that(old: Path) -> None:
    Manifest.upgrade(old)
    file = old / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"identity": "0" * 64}))
    (problem,) = verify_shards(old)
    assert (problem.where, problem.expected) == ("identity", "0" * 64)


def test_writers_take_the_form_for_many_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write(tmp_path / "small", N)
    monkeypatch.setattr(manifest_module, "MOST_IN_JSON", N - 1)
    large = write(tmp_path / "large", N)
    assert large == small == Manifest.load(tmp_path / "large")
    assert large.fingerprint == Manifest.load(tmp_path / "large").fingerprint
    assert write(tmp_path / "large", N, again=True).fingerprint == large.fingerprint
    assert sorted(file.name for file in (tmp_path / "large").iterdir()) == [
        MANIFEST_FILE, ROWS_FILE, *(f"shard-00000{number}.tar" for number in range(4))
    ]  # fmt: skip
    assert first_batches(large) == first_batches(small)


# -- what cannot be --------------------------------------------------------------------------------


def change_rows(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    """Rewrite the rows and make the manifest's digest agree: what a hostile author could do."""
    path = folder / ROWS_FILE
    rows = np.load(path)
    change(rows)
    np.save(path, rows)
    seal(folder)


def seal(folder: Path) -> None:
    data = (folder / ROWS_FILE).read_bytes()
    content = json.loads((folder / MANIFEST_FILE).read_bytes())
    content["samples"] |= {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def set_row(row: int, name: str, value: int) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[name][row] = value

    return change


ROWS = {
    "shape": (set_row(3, "shape", 2), {"where": "row 3: shape", "got": "2", "expected": "at most 1"}),
    "no text": (set_row(0, "text_length", 0), {"where": "row 0: text_length", "got": "0"}),
    "long text": (set_row(6, "text_length", (1 << 30) + 1), {"where": "row 6: text_length"}),
    "empty sample": (set_row(0, "end", 0), {"where": "row 0: end", "got": "0"}),
    "not ascending": (set_row(3, "end", 5), {"where": "row 3: end", "got": "5"}),
    "behind the file": (set_row(1, "end", 1 << 30), {"where": "row 1: end"}),
    "behind the last file": (set_row(6, "end", 1 << 30), {"where": "row 6: end"}),
}


@pytest.fixture
def upgraded(tmp_path: Path) -> Path:
    write(tmp_path / "s", N)
    Manifest.upgrade(tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("at_once", [1, 2, 1 << 18])
def test_a_number_that_cannot_be_is_named(
    upgraded: Path, name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever part of the file it comes."""
    monkeypatch.setattr("data_modules.shards.sample_rows.MOST_AT_ONCE", at_once)
    change, fields = ROWS[name]
    change_rows(upgraded, change)
    with refused(DataError, file=ROWS_FILE, **fields):
        Manifest.load(upgraded)


def object_rows(data: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (7,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data[-7 * 16 :]


FILES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {  # and whether the manifest agrees
    "flipped": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), False),
    "short": (lambda data: data[:-16], False),
    "a row short": (lambda data: data[:-16], True),
    "a row more": (lambda data: data + data[-16:], True),
    "objects": (object_rows, True),
    "not an array": (lambda data: b"x" * len(data), True),
    "empty": (lambda data: b"", False),
}


@pytest.mark.parametrize("name", FILES)
def test_another_file_of_rows_is_refused(upgraded: Path, name: str) -> None:
    change, agrees = FILES[name]
    path = upgraded / ROWS_FILE
    path.write_bytes(change(path.read_bytes()))
    if agrees:
        seal(upgraded)
    with refused(DataError, file=path):
        Manifest.load(upgraded)
    assert len(verify_shards(upgraded)) == 1


CONTENTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]] = {
    "no rows": (lambda c: {k: v for k, v in c.items() if k != "samples"}, {"where": "samples"}),
    "lists": (lambda c: c | {"shards": [{**s, "shapes": [0]} for s in c["shards"]]}, {"where": "shards[0].shapes"}),
    "columns": (lambda c: c | {"samples": c["samples"] | {"columns": ["shape"]}}, {"where": "samples.columns"}),
    "an older form": (lambda c: c | {"format": "lumos-shards-2"}, {"where": "identity"}),
    "millions": (lambda c: c | {"shards": [{**c["shards"][0], "n_samples": (1 << 32) - 1}]}, {"file": ROWS_FILE}),
    "identity": (lambda c: c | {"identity": "me"}, {"where": "identity"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_manifest_that_does_not_go_with_its_rows_is_refused(upgraded: Path, name: str) -> None:
    change, fields = CONTENTS[name]
    file = upgraded / MANIFEST_FILE
    file.write_text(json.dumps(change(json.loads(file.read_bytes()))))
    with refused(DataError, **fields):
        Manifest.load(upgraded)


def test_rows_that_are_missing_are_named(upgraded: Path) -> None:
    (upgraded / ROWS_FILE).unlink()
    with refused(DataError, file=ROWS_FILE):
        Manifest.load(upgraded)


def test_what_else_is_known_of_the_samples_stands_beside_them(tmp_path: Path) -> None:
    """In either form, and as a part of the identity."""
    plain = write(tmp_path, N)
    known = replace(plain, metadata=SideFile(n_bytes=5, sha256="0" * 64))
    known.save(tmp_path)
    assert Manifest.load(tmp_path).metadata == known.metadata
    assert Manifest.load(tmp_path).fingerprint == known.fingerprint != plain.fingerprint
    Manifest.upgrade(tmp_path)
    assert Manifest.load(tmp_path).metadata == known.metadata


# -- some of the samples ---------------------------------------------------------------------------


def taken(manifest: Manifest, **settings: Any) -> set[tuple[int, int]]:
    return {(s.shard, s.place) for batch in first_batches(manifest, **settings) for s in batch.samples}


def test_samples_that_are_not_selected_never_come(upgraded: Path) -> None:
    manifest = Manifest.load(upgraded)
    selected = np.array([False, False, True, False, True, True, True])
    chosen = manifest.selecting(selected)
    assert chosen.fingerprint == manifest.fingerprint and chosen.n_samples == N
    expected = {(1, 0), (2, 0), (2, 1), (3, 0)}
    assert taken(chosen) == taken(chosen, max_tokens=4000) == expected
    plan = StreamPlan(manifest, SourceConfig(frames=9), compact_layout(), kind="video", seed=3, selected=selected)
    assert plan.n_samples == 4
    assert {(s.shard, s.place) for batch in plan.sequential() for s in batch.samples} == expected
    planned = next(plan.stream(0)).samples[0]
    assert {(s.shard, s.place) for s in plan.stand_ins(planned, 1e9)} <= expected - {(planned.shard, planned.place)}
    again = pickle.loads(pickle.dumps(chosen))
    assert again == chosen and taken(again) == expected


def test_a_selection_goes_with_the_shards(upgraded: Path, tmp_path: Path) -> None:
    """Where some of them are held out, and where folders are read together."""
    chosen = Manifest.load(upgraded).selecting(np.arange(N) % 2 == 0)
    parts = split(FolderShards(folder=upgraded, manifest=chosen), 0.5, "video")
    kept = {
        (part.manifest.table.file(shard), place) for part in parts for shard, place in taken(part.manifest, streams=1)
    }
    assert kept == {(f"shard-00000{number}.tar", 0) for number in range(4)}
    write(tmp_path / "other", 3)
    other = FolderShards(folder=tmp_path / "other", manifest=Manifest.load(tmp_path / "other"))
    joined = JoinedShards.of(tmp_path, [FolderShards(folder=upgraded, manifest=chosen), other])
    assert taken(joined.manifest) == {(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (5, 0)}


def test_nothing_selected_is_refused(upgraded: Path) -> None:
    manifest = Manifest.load(upgraded).selecting(np.zeros(N, bool))
    with refused(DataError, where="data.video", got=f"0 of {N} samples"):
        StreamPlan(manifest, SourceConfig(), compact_layout(), kind="video", seed=0)


def test_the_default_size_of_a_shard_follows_the_number_of_samples() -> None:
    """About a thousand of them, neither tiny nor too large to be held."""
    assert [default_shard_size(n) for n in (1, 65_536, 65_537, 10**6, 10**7, 6 * 10**7)] == [
        64, 64, 128, 1024, 4096, 4096
    ]  # fmt: skip
