"""Damage, by chance or by intent, is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.shard_check import verify_shards
from data_modules.shards import read_shard
from lumos_pl.errors import DataError
from lumos_pl.seeding import generator
from tests.data_modules.shard_files import (
    ARCHIVES,
    FIELDS,
    GOOD,
    Member,
    npy,
    rename,
    seal,
    seal_bytes,
    write,
)


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


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_what_it_should_be(tmp_path: Path, name: str) -> None:
    change, expected = ARCHIVES[name]
    write(tmp_path)
    manifest = seal(tmp_path, 0, change)
    with pytest.raises(DataError) as caught:
        read_shard(tmp_path, manifest, 0)
    assert expected in str(caught.value).replace(f"{tmp_path / 'shard-000000.tar'} | ", "")
    assert "shard-000000.tar" in str(caught.value)


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
    "rate as NaN": (lambda c: {**c, "fps": float("nan")}, "got NaN"),
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
