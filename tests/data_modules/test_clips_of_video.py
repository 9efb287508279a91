"""Several clips of a video: each once, with its time, whatever happens meanwhile; rows of one file decode it once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from data_modules.manifest import Manifest
from data_modules.media.decode import ClipRequest, DecodedClip, Several
from data_modules.media_list import read_media_list
from data_modules.shard_sample import sample_key
from data_modules.shards import ShardSample, read_shard
from data_modules.tokenize import TokenizeSettings, tokenize_items
from data_modules.tokenize_state import counts_of
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.media_fakes import MeanTokenizer, WrittenReader, write_clip

FRAMES = {"a": 34, "b": 8, "c": 5, "d": 1, "e": 27}  # of the media; 1: an image


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for seed, (name, frames) in enumerate(FRAMES.items()):
        write_clip(folder / f"{name}.clip", seed, frames)
        (folder / f"{name}.txt").write_text(f"clip {name}")
    return folder


class CountingReader(WrittenReader):
    asked: ClassVar[Counter[str]] = Counter()

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        self.asked[f"read {path.stem}"] += 1
        return super().read(path, request)

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
        self.asked[f"clips {path.stem}"] += 1
        return super().clips(path, request, several)


def tokenize(source: Path, out: Path, *, reader: Any = WrittenReader, on_progress: Any = None, **options: Any) -> None:
    small = {"size": "16x8", "fps": 8, "frames": 8, "workers": 0, "retry": RetryConfig(attempts=3, wait_s=0)}
    settings = TokenizeSettings(**{**small, "clips_per_video": "all", **options})
    items = read_media_list(source)
    tokenize_items(items, out, settings, make_tokenizer=MeanTokenizer, make_reader=reader, on_progress=on_progress)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def samples(folder: Path) -> Iterator[ShardSample]:
    manifest = Manifest.load(folder)
    for index in range(len(manifest.shards)):
        yield from read_shard(folder, manifest, index)


def times(folder: Path) -> list[tuple[str, float | None]]:
    return [(sample.source[0], sample.start_s) for sample in samples(folder)]


ALL = [*(("a", float(i)) for i in range(4)), ("b", 0.0), *(("e", float(i)) for i in range(3))]


def test_all_clips_of_a_video_with_their_times_and_keys(media: Path, tmp_path: Path) -> None:
    (media / "c.clip").unlink()
    (media / "c.txt").unlink()
    tokenize(media, tmp_path / "out")
    assert times(tmp_path / "out" / "videos") == ALL
    assert times(tmp_path / "out" / "images") == [("d", None)]
    keys = [sample.key for sample in samples(tmp_path / "out" / "videos")]
    assert [key[-4:] for key in keys] == ["-000", "-001", "-002", "-003", "-000", "-000", "-001", "-002"]
    assert {key[:-4] for key in keys[:4]} == {sample_key("a.clip", "None", "clip a")}
    assert counts_of(tmp_path / "out") == {"images": 1, "videos": 8, "quarantined": 0, "rests": 2}
    content_of_first = json.loads(_member(tmp_path / "out" / "videos" / "shard-000000.tar", keys[1] + ".json"))
    assert content_of_first["start_s"] == 1.0


def _member(tar: Path, name: str) -> bytes:
    import tarfile

    with tarfile.open(tar) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()
