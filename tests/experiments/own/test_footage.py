"""What a folder of somebody's own videos holds, and what of it is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from experiments.own.footage import open_footage, split, too_little, write_list
from faults.media_kinds import PICTURE, write_moving
from lumos_pl.errors import ConfigError, DataError
from tests.refusals import refused

VIDEO = b"\0\0\0\x18ftypisom"


def written(folder: Path, *names: str, content: bytes = VIDEO) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def videos(captions: dict[str, int]) -> list[MediaItem]:
    names = [(f"{caption}/{number}.mp4", caption) for caption, count in captions.items() for number in range(count)]
    return [MediaItem(path=Path("/v", name), name=name, caption=caption) for name, caption in names]


def test_a_video_without_a_text_is_called_as_its_folder(tmp_path: Path) -> None:
    folder = written(tmp_path, "space_invaders/a.mp4", "pong/b.mp4", "pong/c.mp4")
    (folder / "pong" / "c.txt").write_text("a long rally")
    footage = open_footage(folder)
    assert [item.caption for item in footage.items] == ["pong", "a long rally", "space invaders"]
    assert footage.named_by_folder == 2


def test_videos_are_told_by_what_they_hold(tmp_path: Path) -> None:
    """As among the subtitles, thumbnails and notes that a download brings with each video."""
    for ending in "gif", "webp", "png", "avif":
        write_moving(tmp_path / f"moving.{ending}")
    PICTURE.save(tmp_path / "still.webp")
    PICTURE.save(tmp_path / "still.mp4", "PNG")
    PICTURE.save(tmp_path / "still.avif")
    written(tmp_path, "a.vtt", "b.info.json", "c.mp4", content=b"WEBVTT")
    footage = open_footage(written(tmp_path, "z.video", "y.mp4"))
    kept = ["moving.avif", "moving.gif", "moving.png", "moving.webp", "y.mp4", "z.video"]
    assert [item.name for item in footage.items] == kept
    assert sorted(map(sorted, footage.left_aside.values())) == [
        ["a.vtt", "b.info.json", "c.mp4"],
        ["still.avif", "still.mp4", "still.webp"],
    ]


def test_a_link_inside_the_folder_is_the_video_that_it_leads_to(tmp_path: Path) -> None:
    """Once, under one caption; the lists that are made of it are read from elsewhere."""
    folder = written(tmp_path / "videos", "all/a.mp4", "all/b.mp4")
    for name in "pong/a.mp4", "pong/again.mp4":
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to("../all/a.mp4")
    footage = open_footage(folder)
    assert [item.name for item in footage.items] == ["all/a.mp4", "all/b.mp4", "pong/a.mp4"]
    assert list(footage.left_aside.values()) == [["pong/again.mp4"]]
    train, held = split(footage.items)
    assert not {item.path for item in train} & {item.path for item in held}
    (tmp_path / "list.jsonl").write_bytes(write_list(footage.items))
    assert not any(item.problem for item in read_media_list(tmp_path / "list.jsonl"))


def test_a_list_in_the_folder_says_the_captions(tmp_path: Path) -> None:
    folder = written(tmp_path, "a.mp4", "b.mp4")
    (folder / "captions.csv").write_text("path,caption\na.mp4,one\n")
    footage = open_footage(folder)
    assert [item.caption for item in footage.items] == ["one"]
    assert (footage.listed, footage.named_by_folder) == (folder / "captions.csv", 0)
    (folder / "captions.jsonl").write_text('{"path": "a.mp4", "caption": "two"}\n')
    with refused(ConfigError, file=folder):
        open_footage(folder)
    assert [item.caption for item in open_footage(folder / "captions.jsonl").items] == ["two"]


def test_what_holds_no_videos_is_refused(tmp_path: Path) -> None:
    with refused(DataError, file=tmp_path / "none"):
        open_footage(tmp_path / "none")
    with refused(DataError, file=tmp_path):
        open_footage(tmp_path)
    with refused(DataError, file=tmp_path, got="1 a picture that does not move"):
        open_footage(written(tmp_path, "a.png", content=b"\x89PNG\r\n\x1a\n"))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.mp4").symlink_to(written(tmp_path, "a.mp4") / "a.mp4")
    with refused(DataError, file=linked, got="1 link out of the folder"):
        open_footage(linked)


def test_what_cannot_be_taken_is_counted(tmp_path: Path) -> None:
    folder = written(tmp_path / "videos", "a.mp4")
    (folder / "out.mp4").symlink_to(written(tmp_path, "secret.mp4") / "secret.mp4")
    footage = open_footage(folder)
    assert [item.name for item in footage.items] == ["a.mp4"]
    assert list(footage.left_aside.values()) == [["out.mp4"]]


def test_other_videos_have_another_fingerprint(tmp_path: Path) -> None:
    before = open_footage(written(tmp_path, "a.mp4")).fingerprint
    assert open_footage(tmp_path).fingerprint == before
    assert open_footage(written(tmp_path, "b.mp4")).fingerprint != before


@pytest.mark.parametrize(("sources", "held_out"), [(1, 0), (2, 1), (4, 1), (19, 2), (300, 30)])
def test_about_a_tenth_of_the_sources_is_held_out(sources: int, held_out: int) -> None:
    train, held = split(videos({"a": sources}))
    assert (len(train), len(held)) == (sources - held_out, held_out)


def test_what_is_held_out_is_spread_over_the_captions_whatever_the_order() -> None:
    items = videos({"a": 20, "b": 20, "c": 20})
    train, held = split(items)
    assert sorted(item.caption for item in held) == ["a", "a", "b", "b", "c", "c"]
    assert {item.name for item in split(items[::-1])[1]} == {item.name for item in held}
    assert {item.name for item in train} | {item.name for item in held} == {item.name for item in items}


def test_what_one_file_is_said_to_be_of_is_one_source() -> None:
    """Here each film in two files, of which one also has a row of the next scene, as `source` names them."""
    rows = [(f"{film}-{part}", f"{film}-{scene}") for film in range(30) for part, scene in [(0, 0), (0, 1), (1, 1)]]
    items = [
        MediaItem(path=Path(f"/v/{file}.mp4"), name=f"{file} {scene}", caption="x", metadata={"source": scene})
        for file, scene in rows
    ]
    train, held = split(items)
    assert len(train) == 81 and len(held) == 9
    assert not {item.name[: item.name.index("-")] for item in train} & {
        item.name[: item.name.index("-")] for item in held
    }


def test_no_source_is_on_both_sides() -> None:
    rows = [
        MediaItem(path=Path(f"/v/{film}-{part}.mp4"), name=f"{film}-{part}", caption="x", metadata={"source": film})
        for film in range(4)
        for part in range(5)
    ]
    train, held = split(rows)
    assert len(held) == 5
    assert not {item.metadata["source"] for item in train} & {item.metadata["source"] for item in held}
    starts = [MediaItem(path=Path("/v/one.mp4"), name="one.mp4", caption="x", start=s) for s in (0.0, 2.0, 4.0)]
    assert split(starts) == (starts, [])
    copies = videos({"a": 2})
    assert split(copies, same=[[item.name for item in copies]]) == (copies, [])


def test_a_written_list_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    items = [
        MediaItem(path=tmp_path / "ä b.mp4", name="ä b.mp4", caption='say "hi"\nnow', start=1.5),
        *videos({"a": 1}),
    ]
    file.write_bytes(write_list(items))
    read = read_media_list(file)
    assert [(item.path, item.caption, item.start) for item in read] == [
        (item.path, item.caption, item.start) for item in items
    ]
    assert "start" not in json.loads(file.read_text().splitlines()[1])


def test_too_little_is_said_and_enough_is_not() -> None:
    train, held = split(videos({"a": 100, "b": 100}))
    assert too_little(200, train, held) == []
    assert len(too_little(149, train, held)) == 1
    train, held = split(videos({"a": 3, "b": 1}))
    assert len(too_little(4, train, held)) == 3
    assert len(too_little(1, videos({"a": 1}), [])) == 2
