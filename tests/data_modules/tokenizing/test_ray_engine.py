"""`lumos tokenize --engine ray`: the same bytes as without."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.shards.manifest import Manifest
from data_modules.tokenizing.media_list import open_media_list
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import tokenize_items
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.tokenizing.media_fakes import MeanTokenizer, WrittenReader, write_clip
from tests.refusals import refused


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(30):
        write_clip(folder / f"{number:02d}.clip", number, [9, 1, 40, 5][number % 4])
    rows = [json.dumps({"path": f"{number:02d}.clip", "caption": f"clip {number}"}) for number in range(30)]
    (folder / "list.jsonl").write_text("\n".join(rows))
    (folder / "07.0").write_text("damage")  # of its first clip
    return folder / "list.jsonl"


def tokenize(media: Path, out: Path, **options: Any) -> dict[str, Manifest]:
    small = {"size": "16x8", "fps": 8, "frames": 8, "workers": 0, "samples_per_shard": 4, "clips_per_video": "all"}
    settings = TokenizeSettings(**small | {"retry": RetryConfig(attempts=2, wait_s=0)} | options)
    items = open_media_list(media)
    return tokenize_items(items, out, settings, make_tokenizer=MeanTokenizer, make_reader=WrittenReader)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_without_the_library_it_is_one_line(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(ConfigError, where="--engine ray") as caught:
        tokenize(media, tmp_path / "out", engine="ray")
    assert "lumos_pl[ray]" in (caught.value.fix or "")
    assert tokenize(media, tmp_path / "out")  # what was begun goes on without it


def test_an_unknown_engine_is_refused() -> None:
    with refused(ConfigError, where="--engine", got="'spark'"):
        TokenizeSettings(engine="spark")  # type: ignore[arg-type]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray on this machine, with two workers."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'lumos_pl[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_bytes_as_without_ray(media: Path, tmp_path: Path, cluster: None) -> None:
    tokenize(media, tmp_path / "batches", engine="ray", batch_size=3)
    tokenize(media, tmp_path / "alone in batches", batch_size=3)
    assert content(tmp_path / "batches") == content(tmp_path / "alone in batches")
    (media.parent / "12.outage").write_text("99")
    with refused(TemporaryError, file="12.clip"):
        tokenize(media, tmp_path / "outage", engine="ray", clips_per_video=1)
    (media.parent / "12.outage").unlink()
    tokenize(media, tmp_path / "outage", engine="ray", clips_per_video=1)
    tokenize(media, tmp_path / "one each", clips_per_video=1)
    assert content(tmp_path / "outage") == content(tmp_path / "one each")
