"""Several clips of a video: each once, with its time, whatever happens meanwhile; rows of one file decode it once."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from data_modules.media.decode import ClipRequest, DecodedClip, Several
from data_modules.shards.sample import KEY, sample_key
from data_modules.tokenizing.clips_of_video import Task, clip_key, grouped, parse_key
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.state import QUARANTINE_FILE, counts_of
from data_modules.tokenizing.tokenize import tokenize_items
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.shards.shard_files import all_samples, content
from tests.data_modules.tokenizing.media_fakes import MeanTokenizer, WrittenReader, write_clip
from tests.refusals import refused

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
    done: ClassVar[list[int]] = []

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        self.asked[f"read {path.stem}"] += 1
        return super().read(path, request)

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
        self.asked[f"clips {path.stem}"] += 1
        self.done.append(several.done)
        return super().clips(path, request, several)


def tokenize(source: Path, out: Path, *, reader: Any = WrittenReader, on_progress: Any = None, **options: Any) -> None:
    small = {"size": "16x8", "fps": 8, "frames": 8, "workers": 0, "retry": RetryConfig(attempts=3, wait_s=0)}
    settings = TokenizeSettings(**{**small, "clips_per_video": "all", **options})
    items = read_media_list(source)
    tokenize_items(items, out, settings, make_tokenizer=MeanTokenizer, make_reader=reader, on_progress=on_progress)


def times(folder: Path) -> list[tuple[str, float | None]]:
    return [(sample.source[0], sample.start_s) for sample in all_samples(folder)]


ALL = [*(("a", float(i)) for i in range(4)), ("b", 0.0), ("c", 0.0), *(("e", float(i)) for i in range(3))]


def test_all_clips_of_a_video_with_their_times_and_keys(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "out")
    assert times(tmp_path / "out" / "videos") == ALL
    assert times(tmp_path / "out" / "images") == [("d", None)]
    keys = [sample.key for sample in all_samples(tmp_path / "out" / "videos")]
    assert [key[-4:] for key in keys] == ["-000", "-001", "-002", "-003", "-000", "-000", "-000", "-001", "-002"]
    assert {key[:-4] for key in keys[:4]} == {sample_key("a.clip", "None", "clip a")}
    assert counts_of(tmp_path / "out") == {"images": 1, "videos": 9, "quarantined": 0, "rests": 2}
    content_of_first = json.loads(_member(tmp_path / "out" / "videos" / "shard-000000.tar", keys[1] + ".json"))
    assert content_of_first["start_s"] == 1.0


def _member(tar: Path, name: str) -> bytes:
    with tarfile.open(tar) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def test_keys_of_clips_fit_and_lead_back_to_their_row() -> None:
    for name in ("a.mp4", "x" * 200 + ".mp4", "-" * 70 + ".mp4"):
        key = sample_key(name, "None", "caption")
        for number in (0, 999, 1000, 123456):
            clip = clip_key(key, number)
            assert KEY.fullmatch(clip) and parse_key(clip) == (key[-16:], number)
        assert parse_key(key) == (key[-16:], None)
    assert parse_key("a-1234567890123456") == ("1234567890123456", None)


def test_several_processes_change_nothing(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "alone")
    tokenize(media, tmp_path / "team", workers=2)
    assert content(tmp_path / "alone") == content(tmp_path / "team")


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_kill_amid_a_video_costs_no_clip_that_was_made(stop: int, media: Path, tmp_path: Path) -> None:
    """The journal as it is at any moment, cut at any byte, is gone on with to the same shards."""
    tokenize(media, tmp_path / "whole")

    class Killed(Exception):
        pass

    seen = []

    def kill(report: object) -> None:
        seen.append(report)
        if len(seen) == stop + 1:  # the first report is of the beginning
            raise Killed

    with pytest.raises(Killed):
        tokenize(media, tmp_path / "out", on_progress=kill)
    (journal,) = (tmp_path / "out").glob("*.partial.jsonl")
    journal.write_bytes(journal.read_bytes()[: -1 if stop == 3 else None])
    CountingReader.done.clear()
    tokenize(media, tmp_path / "out", reader=CountingReader)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert CountingReader.done[0] == {1: 1, 3: 2, 7: 0}[stop]  # after the seventh: the end of `c` or later


def listed(tmp_path: Path, rows: list[dict[str, object]]) -> Path:
    path = tmp_path / "media" / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_damage_amid_a_video_quarantines_its_row_alone_and_mended_it_is_made_anew(media: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"path": f"{name}.clip", "caption": f"clip {name}"} for name in "abce"]
    source = listed(tmp_path, rows)
    tokenize(source, tmp_path / "whole")
    (media / "a.2").write_text("damage")
    tokenize(source, tmp_path / "out")
    assert times(tmp_path / "out" / "videos") == ALL[4:]
    (line,) = (tmp_path / "out" / QUARANTINE_FILE).read_text().splitlines()
    assert json.loads(line) == {"path": "a.clip", "line": 1, "reason": "damaged frame"}
    (media / "a.2").unlink()
    tokenize(source, tmp_path / "out", retry_quarantined=True)
    assert times(tmp_path / "out" / "videos") == [*ALL[4:], *ALL[:4]]  # shards that were written stay as they are
    assert counts_of(tmp_path / "out") == counts_of(tmp_path / "whole")


def test_storage_that_fails_amid_a_video_is_tried_again_from_there(media: Path, tmp_path: Path) -> None:
    source = listed(tmp_path, [{"path": f"{name}.clip", "caption": f"clip {name}"} for name in "abce"])
    tokenize(source, tmp_path / "whole")
    (media / "a.2").write_text("storage")
    CountingReader.done.clear()
    tokenize(source, tmp_path / "out", reader=CountingReader)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert CountingReader.done == [0, 2, 0, 0, 0]


def test_rows_of_one_video_decode_it_once(media: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "a.clip", "caption": caption, "start": start}
        for caption, start in [("later", 3), ("first", 0), ("first in other words", 0), ("amid", 1.5)]
    ]
    source = listed(tmp_path, [*rows, {"path": "e.clip", "caption": "another"}, {"path": "e.clip", "caption": "again"}])
    CountingReader.asked.clear()
    tokenize(source, tmp_path / "out", reader=CountingReader, clips_per_video=1)
    assert CountingReader.asked == {"clips a": 1, "read e": 1}
    codes = {sample.text: (sample.codes, sample.start_s) for sample in all_samples(tmp_path / "out" / "videos")}
    assert list(codes) == ["later", "first", "first in other words", "amid", "another", "again"]
    assert np.array_equal(codes["first"][0], codes["first in other words"][0])
    assert np.array_equal(codes["another"][0], codes["again"][0])
    assert not np.array_equal(codes["first"][0], codes["later"][0])
    assert {start for _, start in codes.values()} == {None}  # as of every list until now
    (media / "a.1").write_text("damage")  # seen by who reads several: each row is then looked at by itself
    tokenize(source, tmp_path / "again", clips_per_video=1)
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_a_row_with_a_start_is_one_clip_among_rows_of_many(media: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "a.clip", "caption": "all"},
        {"path": "a.clip", "caption": "one", "start": 2},
    ]
    tokenize(listed(tmp_path, rows), tmp_path / "out")
    found = [(sample.text, sample.start_s) for sample in all_samples(tmp_path / "out" / "videos")]
    assert found == [*(("all", float(i)) for i in range(4)), ("one", None)]


class ToTheEnd(WrittenReader):
    ended: ClassVar[list[str]] = []

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
        rests = yield from super().clips(path, request, several)
        self.ended.append(path.stem)
        return rests


def test_a_file_is_read_to_its_end_so_that_its_decoder_serves_the_next(media: Path, tmp_path: Path) -> None:
    ToTheEnd.ended.clear()
    rows: list[dict[str, object]] = [
        {"path": f"{name}.clip", "caption": name, "start": start} for name in "ae" for start in (0, 1)
    ]
    tokenize(listed(tmp_path, rows), tmp_path / "out", reader=ToTheEnd, clips_per_video=1)
    assert ToTheEnd.ended == ["a", "e"]


def test_groups_are_rows_that_stand_together() -> None:
    tasks = [Task(i, MediaItem(path=Path(name), name=name)) for i, name in enumerate("aab" + "c" * 40 + "a")]
    sizes = [len(group) for group in grouped(tasks)]
    assert sizes[:2] == [2, 1] and sizes[-1] == 1 and sum(sizes) == 44 and max(sizes) < 40


@pytest.mark.parametrize(
    "wrong", [{"clips_per_video": 0}, {"start": 1.0}, {"start": 1.0, "clips_per_video": 1, "scenes": True}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TokenizeSettings(**{"clips_per_video": "all", **wrong})


def test_folders_of_before_go_on_and_others_are_told(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "out", clips_per_video=1)
    settings = json.loads((tmp_path / "out" / "tokenize.json").read_text())["settings"]
    assert not {"clips_per_video", "scenes"} & set(settings)
    with refused(ConfigError, where="clips_per_video"):
        tokenize(media, tmp_path / "out", clips_per_video=2)
