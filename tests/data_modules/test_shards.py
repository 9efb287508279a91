"""Shards: what is written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webdataset.tariterators import tarfile_samples

from data_modules.manifest import MANIFEST_FILE
from data_modules.shard_check import verify_shards
from data_modules.shards import Manifest, ShardSample, ShardWriter, read_shard, resolve_text
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.seeding import generator

CODEBOOK = 240
SHAPES = [(3, 4, 8), (1, 8, 4)]
IDS = (17, 3, "{frames}", 5, "{fps}", 9)


def make_sample(index: int, **changes: Any) -> ShardSample:
    t, h, w = SHAPES[index % 2]
    codes = torch.randint(CODEBOOK, (t, h, w), generator=generator(0, "codes", index)).numpy().astype(np.uint16)
    sample = ShardSample(
        key=f"clip-{index}",
        codes=codes,
        text=IDS if index % 2 else f"a blue circle rises, № {index}",
        frames=1 + 4 * (t - 1),
        fps=8,
        duration=2,
        width=8 * w,
        height=8 * h,
        source=f"made up/{index}.npy",
    )
    return replace(sample, **changes)


def open_writer(folder: Path, **options: Any) -> ShardWriter:
    return ShardWriter(folder, tokenizer="toy", codebook_size=CODEBOOK, strides=(4, 8, 8), **options)


def write(folder: Path, n: int = 5, **options: Any) -> Manifest:
    with open_writer(folder, **{"samples_per_shard": 2, **options}) as writer:
        for index in range(n):
            writer.add(make_sample(index))
    return writer.manifest


def assert_same(sample: ShardSample, expected: ShardSample) -> None:
    assert sample.codes.dtype == np.uint16
    assert np.array_equal(sample.codes, expected.codes)
    assert {**vars(sample), "codes": None} == {**vars(expected), "codes": None}


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
    ("changes", "named"),
    [
        ({"key": "a.b"}, "sample a.b: key"),
        ({"key": "../a"}, "sample ../a: key"),
        ({"key": "x" * 81}, "key"),
        ({"codes": np.full((3, 4, 8), 240, np.uint16)}, "codes[0, 0, 0] | got 240, expected 0 to 239"),
        ({"codes": np.zeros((3, 4, 8), np.int64)}, "codes | got int64 [3, 4, 8], expected uint16"),
        ({"codes": np.zeros((4, 8), np.uint16)}, "codes | got uint16 [4, 8]"),
        ({"text": " \n"}, "text |"),
        ({"text": "a\0b"}, "text |"),
        ({"text": "\ud800"}, "UTF-8"),
        ({"text": ()}, "text |"),
        ({"text": (1, "{duration}")}, "text[1] |"),
        ({"text": (1, -1)}, "text[1] |"),
        ({"text": (True,)}, "text[0] |"),
        ({"frames": 13}, "frames | got 13"),
        ({"frames": 5}, "frames | got 5"),
        ({"height": 40}, "height | got 40"),
        ({"width": 63}, "width | got 63"),
        ({"fps": 0}, "fps | got 0"),
        ({"fps": 12.0}, "fps | got 12.0"),
        ({"duration": True}, "duration | got True"),
        ({"source": ""}, "source |"),
    ],
)
def test_writer_refuses_a_wrong_sample_and_leaves_nothing(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = tmp_path / "shards"
    with (
        pytest.raises(DataError) as caught,
        open_writer(folder, samples_per_shard=1) as writer,
    ):
        writer.add(make_sample(1))
        writer.add(make_sample(0, **changes))
    assert named in str(caught.value)
    assert list(folder.iterdir()) == []


def test_writer_refuses_a_second_sample_of_one_key(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"two samples of one key \| sample clip-0"),
        open_writer(tmp_path, samples_per_shard=1) as writer,
    ):
        writer.add(make_sample(0))
        writer.add(make_sample(0))


def test_writer_refuses_a_folder_in_use_an_empty_data_set_and_wrong_limits(tmp_path: Path) -> None:
    write(tmp_path / "full")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "full").iterdir())
    with pytest.raises(DataError, match="empty folder"):
        write(tmp_path / "full")
    assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "full").iterdir())
    with pytest.raises(DataError, match="no samples"):
        write(tmp_path / "none", n=0)
    with pytest.raises(ConfigError, match="samples_per_shard"):
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
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "shards")
    with pytest.raises(DataError):
        Manifest.load(tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


# -- damage --------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    path = tmp_path / manifest.shards[1].file
    whole = path.read_bytes()
    for bit in torch.randint(8 * len(whole), (200,), generator=generator(0, "bits")).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="other content"):
            read_shard(tmp_path, manifest, 1)
    for damaged in (whole[:-512], whole[:1000], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"another size.*{path.name}.*got {len(damaged)} bytes"):
            read_shard(tmp_path, manifest, 1)


def test_verify_lists_all_damage(tmp_path: Path) -> None:
    manifest = write(tmp_path, n=9)
    files = [tmp_path / shard.file for shard in manifest.shards]
    files[0].write_bytes(files[1].read_bytes())
    files[2].unlink()
    (tmp_path / "extra.tar").write_bytes(b"")
    seal(tmp_path, 3, lambda m: [rename(m[0], "clip-8.codes.npy"), rename(m[1], "clip-8.json"), *m[2:]])
    seen = []
    problems = verify_shards(tmp_path, on_progress=lambda *at: seen.append(at))
    assert seen == [(done, 5) for done in range(1, 6)]
    assert [(problem.what, Path(problem.file).name) for problem in problems] == [
        ("shard that the manifest does not list", "extra.tar"),
        ("shard with other content", files[0].name),
        ("shard missing", files[2].name),
        ("two samples of one key", files[4].name),
    ]
    assert "sample clip-8" in str(problems[3]) and files[3].name in str(problems[3])


Member = tuple[str, bytes]


def rename(member: Member, name: str) -> Member:
    return name, member[1]


def seal(folder: Path, index: int, change: Callable[[list[Member]], list[Member] | bytes]) -> Manifest:
    """Rewrite a shard and make the manifest's digest agree: what a hostile author could do."""
    manifest = Manifest.read(folder)
    path = folder / manifest.shards[index].file
    with tarfile.open(path) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]
    changed = change(members)
    data = changed if isinstance(changed, bytes) else make_tar(changed)
    path.write_bytes(data)
    entry = replace(manifest.shards[index], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    shards = (*manifest.shards[:index], entry, *manifest.shards[index + 1 :])
    manifest = replace(manifest, shards=shards)
    manifest.save(folder)
    return manifest


def make_tar(members: list[Member], special: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if special is not None:
            archive.addfile(special)
    return buffer.getvalue()


def special_member(kind: bytes, name: str = "clip-9.json", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ARCHIVES: dict[str, tuple[Callable[[list[Member]], list[Member] | bytes], str]] = {
    "symbolic link": (lambda m: make_tar(m[:3], special_member(tarfile.SYMTYPE)), "not a plain file"),
    "hard link": (lambda m: make_tar(m[:3], special_member(tarfile.LNKTYPE)), "not a plain file"),
    "hidden link": (lambda m: make_tar(m, special_member(tarfile.SYMTYPE)), "not a plain file"),
    "device": (lambda m: make_tar(m, special_member(tarfile.CHRTYPE)), "not a plain file"),
    "sparse": (lambda m: make_tar(m, special_member(tarfile.GNUTYPE_SPARSE)), "not a plain file"),
    "gzip": (lambda m: gzip.compress(make_tar(m)), "not a whole tar archive"),
    "bzip2": (lambda m: bz2.compress(make_tar(m)), "not a whole tar archive"),
    "a sample short": (lambda m: m[:2], "number of members"),
    "a sample more": (lambda m: [*m, ("x.codes.npy", m[0][1]), ("x.json", m[1][1])], "number of members"),
    "after the end": (lambda m: make_tar(m) + make_tar(m), "zeros up to the end"),
    "cut": (lambda m: make_tar(m)[:3000], "tar archive"),
    "no tar": (lambda m: b"x" * 5000, "tar archive"),
    "order": (lambda m: [m[1], m[0], *m[2:]], "wrong members"),
    "mixed keys": (lambda m: [m[0], m[3], m[2], m[1]], "wrong members"),
    "path": (lambda m: [rename(m[0], "../a.codes.npy"), rename(m[1], "../a.json"), *m[2:]], "wrong members"),
    "one key twice": (lambda m: m[:2] * 2, "two samples of one key | sample clip-0"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_what_it_should_be(tmp_path: Path, name: str) -> None:
    change, expected = ARCHIVES[name]
    write(tmp_path)
    manifest = seal(tmp_path, 0, change)
    with pytest.raises(DataError) as caught:
        read_shard(tmp_path, manifest, 0)
    assert expected in str(caught.value).replace(f"{tmp_path / 'shard-000000.tar'} | ", "")
    assert "shard-000000.tar" in str(caught.value)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


GOOD = make_sample(0).codes
OUTSIDE = GOOD.copy()
OUTSIDE[1, 2, 3] = OUTSIDE[2, 0, 0] = 240

FIELDS: dict[str, tuple[bytes, str]] = {
    "outside": (npy(OUTSIDE), "codes[1, 2, 3] | got 240, expected 0 to 239"),
    "signed": (npy(GOOD.astype(np.int16)), "got int16 [3, 4, 8], expected uint16 [3, 4, 8]"),
    "big-endian": (npy(GOOD.astype(">u2")), "got >u2"),
    "grid": (npy(GOOD[:, :, :4]), "got uint16 [3, 4, 4], expected uint16 [3, 4, 8]"),
    "fortran": (npy(np.asfortranarray(GOOD)), "Fortran order"),
    "short": (npy(GOOD)[:-2], "got 190 bytes, expected 192"),
    "long": (npy(GOOD) + b"\0\0", "got 194 bytes, expected 192"),
    "objects": (npy(np.array([[[Bomb()]]], dtype=object), allow_pickle=True), "got object [1, 1, 1]"),
    "pickle": (pickle.dumps(Bomb()), "not a .npy array"),
    "newer version": (npy(GOOD, version=(2, 0)), "format version (2, 0)"),
    "nothing": (b"", "not a .npy array"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_codes_that_are_not_what_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, expected = FIELDS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s")
    manifest = seal(tmp_path / "s", 0, lambda members: [(members[0][0], data), *members[1:]])
    with pytest.raises(DataError) as caught:
        read_shard(tmp_path / "s", manifest, 0)
    assert expected in str(caught.value)
    assert "shard-000000.tar | sample clip-0: codes" in str(caught.value)
    assert not Path("executed").exists()


def test_a_header_that_claims_a_huge_array_allocates_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    claim = npy(GOOD).replace(b"(3, 4, 8), }" + b" " * 20, b"(999999999, 999999, 99999), }" + b" " * 3)
    assert claim != npy(GOOD)
    manifest = seal(tmp_path, 0, lambda members: [(members[0][0], claim), *members[1:]])
    with pytest.raises(DataError, match=r"got uint16 \[999999999, 999999, 99999\]"):
        read_shard(tmp_path, manifest, 0)


JSONS: dict[str, tuple[Callable[[dict[str, Any]], Any] | bytes, str]] = {
    "unknown": (lambda c: {**c, "mood": 1}, "unknown field"),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "fps"}, "missing field"),
    "rate as text": (lambda c: {**c, "fps": "8"}, "fps | got '8'"),
    "rate as float": (lambda c: {**c, "fps": 8.0}, "fps | got 8.0"),
    "rate as NaN": (lambda c: {**c, "fps": float("nan")}, "fps | got nan"),
    "no text": (lambda c: {**c, "text": None}, "text | got None"),
    "empty": (lambda c: {**c, "text": ""}, "text | got ''"),
    "NUL": (lambda c: {**c, "text": "a\0b"}, r"text | got 'a\x00b'"),
    "surrogate": (lambda c: {**c, "text": "\ud800"}, "UTF-8"),
    "placeholder": (lambda c: {**c, "text": [1, "{n}"]}, "text[1] | got '{n}'"),
    "other text": (lambda c: {**c, "text": c["text"] + "!"}, "text of another length"),
    "tokenizer": (lambda c: {**c, "tokenizer": "cosmos"}, "tokenizer | got 'cosmos', expected 'toy'"),
    "size": (lambda c: {**c, "width": 128}, "width | got 128"),
    "a list": (lambda c: [c], "not a JSON object"),
    "no JSON": (b"{", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8 | "),
}


@pytest.mark.parametrize("name", JSONS)
def test_descriptions_that_are_not_what_they_should_be(tmp_path: Path, name: str) -> None:
    change, expected = JSONS[name]
    write(tmp_path)

    def damage(members: list[Member]) -> list[Member]:
        content = change if isinstance(change, bytes) else json.dumps(change(json.loads(members[1][1]))).encode()
        return [members[0], (members[1][0], content), *members[2:]]

    manifest = seal(tmp_path, 0, damage)
    with pytest.raises(DataError) as caught:
        read_shard(tmp_path, manifest, 0)
    assert expected in str(caught.value)
    assert "shard-000000.tar | sample clip-0" in str(caught.value)
    assert [str(problem) for problem in verify_shards(tmp_path)] == [str(caught.value)]


def test_any_damage_under_a_right_digest_is_an_expected_failure_or_harmless(tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / "shard-000000.tar").read_bytes()
    draws = generator(0, "sealed")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in torch.randint(5120, (4,), generator=draws).tolist():  # the part that is not padding
            damaged[position] = int(torch.randint(256, (), generator=draws))
        manifest = seal_bytes(tmp_path, bytes(damaged))
        try:
            read_shard(tmp_path, manifest, 0)
        except DataError:
            refused += 1
    assert refused > 100


def seal_bytes(folder: Path, data: bytes) -> Manifest:
    manifest = Manifest.read(folder)
    (folder / manifest.shards[0].file).write_bytes(data)
    entry = replace(manifest.shards[0], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return replace(manifest, shards=(entry, *manifest.shards[1:]))


# -- the manifest --------------------------------------------------------------------------------


def with_shard(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**content, "shards": [{**content["shards"][0], **changes}, *content["shards"][1:]]}


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda c: {**c, "format": "lumos-shards-0"}, "format | got 'lumos-shards-0'"),
    "unknown": (lambda c: {**c, "colour": 1}, "unknown field"),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "strides"}, "missing field"),
    "tokenizer": (lambda c: {**c, "tokenizer": 5}, "tokenizer | got 5"),
    "codebook": (lambda c: {**c, "codebook_size": 65537}, "codebook_size | got 65537"),
    "codebook as text": (lambda c: {**c, "codebook_size": "240"}, "codebook_size | got '240'"),
    "strides": (lambda c: {**c, "strides": [4, 8]}, "strides | got 2 items, expected 3"),
    "zero stride": (lambda c: {**c, "strides": [4, 8, 0]}, "strides | got 0"),
    "shape": (lambda c: {**c, "shapes": [[3, 4, 8], [1, 8]]}, "shapes[1] | got 2 items"),
    "one shape twice": (lambda c: {**c, "shapes": c["shapes"] * 2}, "shapes | got (3, 4, 8), expected each once"),
    "no shards": (lambda c: {**c, "shards": []}, "shards | got []"),
    "one file twice": (lambda c: {**c, "shards": c["shards"][:1] * 2}, "shards | got 'shard-000000.tar'"),
    "outside": (lambda c: with_shard(c, file="../s.tar"), "shards[0]: file"),
    "absolute": (lambda c: with_shard(c, file="/s.tar"), "shards[0]: file"),
    "inner": (lambda c: with_shard(c, file="a/s.tar"), "shards[0]: file"),
    "pipe": (lambda c: with_shard(c, file="pipe:touch x.tar"), "shards[0]: file | got 'pipe:touch x.tar'"),
    "URL": (lambda c: with_shard(c, file="http://host/s.tar"), "shards[0]: file"),
    "line end": (lambda c: with_shard(c, file="s.tar\n"), "shards[0]: file"),
    "digest": (lambda c: with_shard(c, sha256="0" * 63), "shards[0]: sha256"),
    "bytes": (lambda c: with_shard(c, n_bytes=1 << 40), "shards[0]: n_bytes"),
    "count": (lambda c: with_shard(c, n_samples=3), "shards[0]: shapes | got 2 items, expected 3"),
    "no samples": (lambda c: with_shard(c, n_samples=0, shapes=[], text_lengths=[]), "shards[0]: n_samples | got 0"),
    "true": (lambda c: with_shard(c, shapes=[True, 0]), "shards[0]: shapes | got True"),
    "shape index": (lambda c: with_shard(c, shapes=[0, 2]), "shards[0]: shapes | got 2"),
    "text length": (lambda c: with_shard(c, text_lengths=[-1, 6]), "shards[0]: text_lengths | got -1"),
    "a list": (lambda c: [c], "not a JSON object"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_field_that_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    change, expected = MANIFESTS[name]
    write(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path)
    assert expected in str(caught.value) and str(path) in str(caught.value)
    assert [str(problem) for problem in verify_shards(tmp_path)] == [str(caught.value)]


def test_missing_and_extra_files_each_get_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such shard folder.*lumos import-tokens"):
        Manifest.load(tmp_path / "nowhere")
    write(tmp_path / "images")
    with pytest.raises(DataError, match="name a folder inside it: images"):
        Manifest.load(tmp_path)
    (tmp_path / "images" / "more.tar").touch()
    with pytest.raises(DataError, match=r"does not list.*more\.tar"):
        Manifest.load(tmp_path / "images")
    (tmp_path / "images" / "more.tar").unlink()
    (tmp_path / "images" / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard missing.*shard-000001\.tar.*lumos shards verify"):
        Manifest.load(tmp_path / "images")
    (tmp_path / "images" / MANIFEST_FILE).unlink()
    with pytest.raises(DataError, match=r"without manifest\.json.*lumos import-tokens"):
        Manifest.load(tmp_path / "images")
