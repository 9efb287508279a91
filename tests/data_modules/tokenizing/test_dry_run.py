"""A look before the work tells what the work would find, and writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_modules.media.decode import ClipRequest, DecodedClip, Several, decode_clips, decode_media
from data_modules.tokenizing import dry_run
from data_modules.tokenizing.dry_run import DryRun, look_before, sheet, told
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import open_media, tokenize_items
from experiments.cli import main
from faults.numbered import SIZE, number_of, numbered, write_numbered
from lumos_pl.errors import DataError
from tests.data_modules.tokenizing.media_fakes import MeanTokenizer, WrittenReader
from tests.refusals import refused

ALL = Several(per_video=None)
REQUEST = ClipRequest(sizes=((64, 64), SIZE), fps=12, max_frames=8)


class Here(WrittenReader):
    """Decodes in this process."""

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        return decode_media(path, request)

    def look(self, path: Path, request: ClipRequest) -> DecodedClip:
        first = replace(request, max_frames=1, min_frames=1)
        return next(decode_clips(path, first, Several(starts=(0.0,), facts=True)))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_numbered(folder / "a.mp4", 50)
    write_numbered(folder / "b.mkv", 30, rate=24, size=(96, 96))
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes())
    Image.fromarray(numbered(7)).save(folder / "d.png")
    (folder / "e.mp4").write_text("nothing")
    captions = {"a": "one", "b": "two words", "c": "one", "d": "a picture", "e": "broken"}
    for name, caption in captions.items():
        (folder / f"{name}.txt").write_text(caption)
    (folder / "f.mp4").write_bytes((folder / "a.mp4").read_bytes()[:2000])
    return folder


def look(source: Path, several: Several = ALL) -> DryRun:
    return look_before(read_media_list(source), Here(), MeanTokenizer(), REQUEST, several)


def test_what_is_found(media: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in media.iterdir())
    found = look(media)
    assert (found.total, found.looked_at, len(found.seen), found.clips) == (6, 6, 4, 14)
    assert found.problems == {"no caption": 1, "neither a video nor an image that is read": 1} and found.unusable == 2
    assert (found.repeated, found.longest) == (2, 9) and found.same == [["a.mp4", "c.mp4"]]
    lines = dict(told(found, REQUEST, ALL, workers=2))
    assert lines["images"] == "1" and lines["videos"].startswith("3, 9.6 s in all; from 1.25 s to 4.17 s")
    assert lines["sizes"] == "3 128x96, 1 96x96" and lines["cropped to"] == "3 128x96, 1 64x64"
    assert lines["rates"] == "2 12 a second, 1 24 a second"
    assert lines["captions"] == "1 missing, 2 repeated, the longest has 9 characters"
    with_ids = look_before(
        read_media_list(media), Here(), MeanTokenizer(), REQUEST, ALL, lambda text: len(text.split())
    )
    assert with_ids.most_ids == 2 and "most ids 2" in dict(told(with_ids, REQUEST, ALL, workers=2))["captions"]
    assert found.measured == 3 and found.clip_seconds > 0
    assert sorted(path.name for path in media.iterdir()) == before
    picture = sheet(found, title="media", out=tmp_path / "look.png")
    with Image.open(picture) as painted:
        assert painted.format == "PNG"
    assert [number_of(one.first.frames[0]) for one in found.seen if one.item.name in ("a.mp4", "d.png")] == [0, 7]


@pytest.mark.parametrize("several", [ALL, Several(per_video=2), Several()])
def test_as_many_clips_as_are_made_then(media: Path, tmp_path: Path, several: Several) -> None:
    per_video = "all" if several.per_video is None else several.per_video
    settings = TokenizeSettings(size="64x64", frames=8, workers=0, clips_per_video=per_video)

    class Clips(Here):
        def clips(self, path: Path, request: ClipRequest, several: Several):  # type: ignore[no-untyped-def]
            return decode_clips(path, request, several)

    made = tokenize_items(read_media_list(media), tmp_path, settings, make_tokenizer=MeanTokenizer, make_reader=Clips)
    assert sum(manifest.n_samples for manifest in made.values()) == look(media, several).clips
    n_bytes = sum(entry.n_bytes for manifest in made.values() for entry in manifest.shards)
    assert 0.5 < look(media, several).clip_bytes * look(media, several).clips / n_bytes < 1.5


def test_of_many_some_are_looked_at(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LOOKED_AT", 10)
    rows = [{"path": str(media / "a.mp4"), "caption": f"number {i}", "start": i % 6} for i in range(100)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = look(tmp_path / "list.jsonl")
    lines = dict(told(found, REQUEST, ALL, workers=2))
    assert found.looked_at == 10 and lines["looked at"].startswith("10 of 100")
    behind = found.problems["the video ends before the clip starts"]
    assert behind > 0 and found.unusable == 10 * behind and found.clips == 100 - 10 * behind
    assert lines["clips"].startswith("about ")


@pytest.mark.parametrize("n", [20, 25, 50, 51, 75, 76])
@pytest.mark.parametrize("several", [ALL, Several(per_video=3)], ids=["all", "three"])
def test_as_many_clips_are_told_as_the_work_makes(n: int, several: Several, tmp_path: Path) -> None:
    """A clip's last frame need not be shown to its end: 25 frames of a twelfth are 17 of an eighth."""
    file = write_numbered(tmp_path / "a.mp4", n)
    request = replace(REQUEST, fps=8, max_frames=17)
    found = look_before([MediaItem(path=file, name="a.mp4", caption="x")], Here(), MeanTokenizer(), request, several)
    assert found.clips == len(list(decode_clips(file, request, several)))


def test_a_second_name_of_a_file_has_the_same_bytes(media: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").hardlink_to(media / "b.mkv")
    (tmp_path / "b.mp4").hardlink_to(media / "b.mkv")
    items = [MediaItem(path=tmp_path / name, name=name, caption="x") for name in ("a.mp4", "b.mp4")]
    assert look_before(items, Here(), MeanTokenizer(), REQUEST, ALL).same == [["a.mp4", "b.mp4"]]


def test_a_folder_without_captions_is_said_before_any_work(media: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes((media / "a.mp4").read_bytes())
    with refused(DataError, file=tmp_path, got="1 files") as caught:
        open_media(tmp_path, TokenizeSettings())
    assert all(way in str(caught.value) for way in ("a.txt", ".csv", ".jsonl"))


@pytest.mark.seconds
def test_the_command_writes_a_sheet_and_nothing_else(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--size", "64x64", "--frames", "9", "--clips-per-video", "all"]
    assert main(["tokenize", str(media), "--out", str(out), "--dry-run", *flags]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out-look.png"]
    said = capsys.readouterr().out
    assert "6 of 6 files" in said and "out-look.png" in said and "measured on 3 clips" in said
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.mp4").write_text("nothing")
    (broken / "a.txt").write_text("a caption")
    assert main(["tokenize", str(broken), "--out", str(out), "--dry-run", *flags]) == 3
    assert not out.exists()
