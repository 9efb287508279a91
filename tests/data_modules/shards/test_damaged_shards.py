"""Damage, by chance or by intent, is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.shards.check import verify_shards
from data_modules.shards.shards import read_shard
from lumos_pl.errors import DataError
from lumos_pl.seeding import generator
from tests.data_modules.shards.shard_files import (
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
from tests.refusals import refused


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    path = tmp_path / manifest.shards[1].file
    whole = path.read_bytes()
    for bit in torch.randint(8 * len(whole), (200,), generator=generator(0, "bits")).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with refused(DataError, file="shard-000001.tar"):
            read_shard(tmp_path, manifest, 1)
    for damaged in (whole[:-512], whole[:1000], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with refused(DataError, file=path, got=f"{len(damaged)} bytes"):
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
    assert [problem.file for problem in problems] == [tmp_path / "extra.tar", files[0], files[2], files[4]]
    assert problems[3].where == "sample clip-8" and files[3].name in str(problems[3].got)


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_what_it_should_be(tmp_path: Path, name: str) -> None:
    change, fields = ARCHIVES[name]
    write(tmp_path)
    manifest = seal(tmp_path, 0, change)
    with refused(DataError, file="shard-000000.tar", **fields):
        read_shard(tmp_path, manifest, 0)


@pytest.mark.parametrize("name", FIELDS)
def test_codes_that_are_not_what_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, fields = FIELDS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s")
    manifest = seal(tmp_path / "s", 0, lambda members: [(members[0][0], data), *members[1:]])
    with refused(DataError, file="shard-000000.tar", **{"where": "sample clip-0: codes", **fields}):
        read_shard(tmp_path / "s", manifest, 0)
    assert not Path("executed").exists()


def test_a_header_that_claims_a_huge_array_allocates_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    claim = npy(GOOD).replace(b"(3, 4, 8), }" + b" " * 20, b"(999999999, 999999, 99999), }" + b" " * 3)
    assert claim != npy(GOOD)
    manifest = seal(tmp_path, 0, lambda members: [(members[0][0], claim), *members[1:]])
    with refused(
        DataError, file="shard-000000.tar", where="sample clip-0: codes", got="uint16 [999999999, 999999, 99999]"
    ):
        read_shard(tmp_path, manifest, 0)


JSONS: dict[str, tuple[Callable[[dict[str, Any]], Any] | bytes, dict[str, str]]] = {
    "unknown": (lambda c: {**c, "mood": 1}, {"where": "sample clip-0: mood"}),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "fps"}, {"where": "sample clip-0: fps"}),
    "rate as text": (lambda c: {**c, "fps": "8"}, {"where": "sample clip-0: fps", "got": "'8'"}),
    "rate as float": (lambda c: {**c, "fps": 8.0}, {"where": "sample clip-0: fps", "got": "8.0"}),
    "rate as NaN": (lambda c: {**c, "fps": float("nan")}, {"where": "sample clip-0: fps", "got": "nan"}),
    "no text": (lambda c: {**c, "text": None}, {"where": "sample clip-0: text", "got": "None"}),
    "empty": (lambda c: {**c, "text": ""}, {"where": "sample clip-0: text", "got": "''"}),
    "NUL": (lambda c: {**c, "text": "a\0b"}, {"where": "sample clip-0: text", "got": "'a\\x00b'"}),
    "surrogate": (lambda c: {**c, "text": "\ud800"}, {"where": "sample clip-0: text"}),
    "placeholder": (lambda c: {**c, "text": [1, "{n}"]}, {"where": "sample clip-0: text[1]", "got": "'{n}'"}),
    "other text": (lambda c: {**c, "text": c["text"] + "!"}, {"where": "sample clip-0: text"}),
    "tokenizer": (
        lambda c: {**c, "tokenizer": "cosmos"},
        {"where": "sample clip-0: tokenizer", "got": "'cosmos'", "expected": "'toy'"},
    ),
    "size": (lambda c: {**c, "width": 128}, {"where": "sample clip-0: width", "got": "128 beside codes [3, 4, 8]"}),
    "a list": (lambda c: [c], {"where": "sample clip-0"}),
    "no JSON": (b"{", {"where": "sample clip-0"}),
    "deep": (b"[" * 100_000, {"where": "sample clip-0"}),
    "not UTF-8": (b'{"text": "\xff"}', {"where": "sample clip-0"}),
}


@pytest.mark.parametrize("name", JSONS)
def test_descriptions_that_are_not_what_they_should_be(tmp_path: Path, name: str) -> None:
    change, fields = JSONS[name]
    write(tmp_path)

    def damage(members: list[Member]) -> list[Member]:
        content = change if isinstance(change, bytes) else json.dumps(change(json.loads(members[1][1]))).encode()
        return [members[0], (members[1][0], content), *members[2:]]

    manifest = seal(tmp_path, 0, damage)
    with refused(DataError, file="shard-000000.tar", **fields) as caught:
        read_shard(tmp_path, manifest, 0)
    assert [str(problem) for problem in verify_shards(tmp_path)] == [str(caught.value)]


def test_any_damage_under_a_right_digest_is_an_expected_failure_or_harmless(tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / "shard-000000.tar").read_bytes()
    draws = generator(0, "sealed")
    found = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for position in torch.randint(5120, (4,), generator=draws).tolist():  # the part that is not padding
            damaged[position] = int(torch.randint(256, (), generator=draws))
        manifest = seal_bytes(tmp_path, bytes(damaged))
        try:
            read_shard(tmp_path, manifest, 0)
        except DataError:
            found += 1
    assert found > 100
