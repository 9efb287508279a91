"""The manifest: every field, and the files it speaks of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_modules.manifest import MANIFEST_FILE
from data_modules.shard_check import verify_shards
from data_modules.shards import Manifest
from lumos_pl.errors import DataError
from tests.data_modules.shard_files import (
    write,
)


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
