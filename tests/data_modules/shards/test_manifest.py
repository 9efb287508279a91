"""The manifest: every field, and the files it speaks of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_modules.shards.check import verify_shards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from lumos_pl.errors import DataError
from tests.data_modules.shards.shard_files import (
    write,
)
from tests.refusals import refused


def with_shard(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**content, "shards": [{**content["shards"][0], **changes}, *content["shards"][1:]]}


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda c: {**c, "format": "lumos-shards-0"}, {"where": "format", "got": "'lumos-shards-0'"}),
    "unknown": (lambda c: {**c, "colour": 1}, {"where": "colour"}),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "strides"}, {"where": "strides"}),
    "tokenizer": (lambda c: {**c, "tokenizer": 5}, {"where": "tokenizer", "got": "5"}),
    "codebook": (lambda c: {**c, "codebook_size": 65537}, {"where": "codebook_size", "got": "65537"}),
    "codebook as text": (lambda c: {**c, "codebook_size": "240"}, {"where": "codebook_size", "got": "'240'"}),
    "strides": (lambda c: {**c, "strides": [4, 8]}, {"where": "strides", "got": "2 items", "expected": "at least 3"}),
    "zero stride": (lambda c: {**c, "strides": [4, 8, 0]}, {"where": "strides[2]", "got": "0"}),
    "shape": (lambda c: {**c, "shapes": [[3, 4, 8], [1, 8]]}, {"where": "shapes[1]", "got": "2 items"}),
    "one shape twice": (
        lambda c: {**c, "shapes": c["shapes"] * 2},
        {"where": "shapes", "got": "(3, 4, 8)", "expected": "each once"},
    ),
    "no shards": (lambda c: {**c, "shards": []}, {"where": "shards", "got": "0 items"}),
    "one file twice": (
        lambda c: {**c, "shards": c["shards"][:1] * 2},
        {"where": "shards", "got": "'shard-000000.tar'"},
    ),
    "outside": (lambda c: with_shard(c, file="../s.tar"), {"where": "shards[0].file"}),
    "absolute": (lambda c: with_shard(c, file="/s.tar"), {"where": "shards[0].file"}),
    "inner": (lambda c: with_shard(c, file="a/s.tar"), {"where": "shards[0].file"}),
    "pipe": (
        lambda c: with_shard(c, file="pipe:touch x.tar"),
        {"where": "shards[0].file", "got": "'pipe:touch x.tar'"},
    ),
    "URL": (lambda c: with_shard(c, file="http://host/s.tar"), {"where": "shards[0].file"}),
    "line end": (lambda c: with_shard(c, file="s.tar\n"), {"where": "shards[0].file"}),
    "digest": (lambda c: with_shard(c, sha256="0" * 63), {"where": "shards[0].sha256"}),
    "bytes": (lambda c: with_shard(c, n_bytes=1 << 40), {"where": "shards[0].n_bytes"}),
    "count": (lambda c: with_shard(c, n_samples=3), {"where": "shards[0].shapes", "got": "2 items", "expected": "3"}),
    "no samples": (
        lambda c: with_shard(c, n_samples=0, shapes=[], text_lengths=[]),
        {"where": "shards[0].n_samples", "got": "0"},
    ),
    "true": (lambda c: with_shard(c, shapes=[True, 0]), {"where": "shards[0].shapes[0]", "got": "True"}),
    "shape index": (lambda c: with_shard(c, shapes=[0, 2]), {"where": "shards[0].shapes", "got": "2"}),
    "text length": (lambda c: with_shard(c, text_lengths=[-1, 6]), {"where": "shards[0].text_lengths[0]", "got": "-1"}),
    "a list": (lambda c: [c], {}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_field_that_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    change, fields = MANIFESTS[name]
    write(tmp_path)
    path = tmp_path / MANIFEST_FILE
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with refused(DataError, file=path, **fields) as caught:
        Manifest.load(tmp_path)
    assert [str(problem) for problem in verify_shards(tmp_path)] == [str(caught.value)]


def test_missing_and_extra_files_each_get_their_line(tmp_path: Path) -> None:
    with refused(DataError, file="nowhere"):
        Manifest.load(tmp_path / "nowhere")
    write(tmp_path / "images")
    with refused(DataError):
        Manifest.load(tmp_path)
    (tmp_path / "images" / "more.tar").touch()
    with refused(DataError, file="more.tar"):
        Manifest.load(tmp_path / "images")
    (tmp_path / "images" / "more.tar").rename(tmp_path / "images" / "._shard-000000.tar")  # as a Mac leaves them
    assert Manifest.load(tmp_path / "images").n_samples
    (tmp_path / "images" / "shard-000001.tar").unlink()
    with refused(DataError, file="shard-000001.tar"):
        Manifest.load(tmp_path / "images")
    (tmp_path / "images" / MANIFEST_FILE).unlink()
    with refused(DataError, file="images"):
        Manifest.load(tmp_path / "images")
