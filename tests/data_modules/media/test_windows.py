"""Several clips of one file in one pass: each frame the one that is due, each once, whatever the container can seek."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_modules.media.decode import ClipRequest, DecodedClip, Several, decode_clips, decode_media
from data_modules.media.reader import MediaReader
from data_modules.media.windows import spread
from faults.numbered import SIZE, number_of, numbered, write_numbered
from lumos_pl.errors import ConfigError, DataError
from tests.refusals import refused

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
KINDS: dict[str, dict[str, Any]] = {
    "a.mp4": {"options": OPEN_GOP},
    "a.mkv": {"options": OPEN_GOP},
    "a.ts": {"options": OPEN_GOP},
    "a.avi": {"codec": "mpeg4", "b_frames": 2},
    "a.webm": {"codec": "libvpx-vp9"},
}


def wanted(**changes: Any) -> ClipRequest:
    return ClipRequest(**{"sizes": (SIZE,), "fps": 12, "max_frames": 6, **changes})


def read(path: Path, several: Several, request: ClipRequest | None = None) -> tuple[list[DecodedClip], int]:
    clips, found = decode_clips(path, request or wanted(), several), []
    while True:
        try:
            found.append(next(clips))
        except StopIteration as end:
            return found, end.value


def numbers(clips: Sequence[DecodedClip]) -> list[list[int]]:
    return [[number_of(frame) for frame in clip.frames] for clip in clips]


def runs(starts: Sequence[int], n: int = 6) -> list[list[int]]:
    return [list(range(start, start + n)) for start in starts]


@pytest.mark.parametrize("name", KINDS)
def test_all_clips_of_a_video_one_after_another(tmp_path: Path, name: str) -> None:
    path = write_numbered(tmp_path / name, 45, **KINDS[name])
    clips, rests = read(path, Several(per_video=None))
    assert numbers(clips) == runs([0, 6, 12, 18, 24, 30, 36]) and rests == 1
    assert [round(clip.start * 12) for clip in clips] == [0, 6, 12, 18, 24, 30, 36]
    later, rests = read(path, Several(per_video=None, done=5))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(later, clips[5:], strict=True)) and rests == 1


@pytest.mark.parametrize("name", KINDS)
def test_clips_at_starts_are_those_that_are_read_one_by_one(tmp_path: Path, name: str) -> None:
    """Near, far (which is sought), overlapping, and up to the end."""
    path = write_numbered(tmp_path / name, 240, **KINDS[name])
    starts = 0.5, 0.75, 2.0, 15.0, 19.75
    clips, _ = read(path, Several(starts=starts))
    assert numbers(clips) == [*runs([6, 9, 24, 180]), [237, 238, 239]]
    for start, clip in zip(starts, clips, strict=True):
        assert np.array_equal(clip.frames, decode_media(path, wanted(start=start)).frames) and clip.start == start


def test_some_clips_lie_evenly_over_the_video(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 48)
    assert numbers(read(path, Several(per_video=1))[0]) == runs([21]) == numbers([decode_media(path, wanted())])
    assert numbers(read(path, Several(per_video=2))[0]) == runs([9, 33])
    assert numbers(read(path, Several(per_video=8))[0]) == runs(range(0, 48, 6))
    clips, rests = read(path, Several(per_video=500))
    assert numbers(clips) == runs(range(0, 48, 6)) and rests == 0


def test_spread_clips_neither_overlap_nor_leave_the_video() -> None:
    for length in (Fraction(1, 3), Fraction(2), Fraction(61, 7), Fraction(3600)):
        for n in (1, 2, 5, 1000):
            starts = spread(length, Fraction(1, 2), n)
            assert len(starts) == max(1, min(n, int(2 * length))) and starts[0] >= 0
            assert all(b - a >= Fraction(1, 2) for a, b in pairwise(starts))
            assert starts[-1] + Fraction(1, 2) <= max(length, Fraction(1, 2))


@pytest.mark.parametrize(
    "several", [Several(per_video=None), Several(per_video=4), Several(per_video=None, scenes=True)]
)
def test_a_video_shorter_than_a_clip_gives_what_it_has(tmp_path: Path, several: Several) -> None:
    path = write_numbered(tmp_path / "a.mp4", 4)
    clips, rests = read(path, several)
    assert numbers(clips) == [[0, 1, 2, 3]] and rests == 0
    with refused(DataError, file="a.mp4", got="4 frames at 12 fps"):
        read(path, several, wanted(min_frames=5))


def test_uneven_times_keep_their_pace(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(0).integers(20, 200, 60)).tolist()
    path = write_numbered(tmp_path / "a.mkv", 60, times_ms=[0, *times[:-1]])
    clips, _ = read(path, Several(per_video=None))
    seen = [number for clip in numbers(clips) for number in clip]
    shown = [0, *times]
    assert seen == [max(i for i in range(60) if shown[i] <= 1000 * n / 12 + 1) for n in range(len(seen))]


def test_pictures_that_move_give_several_and_still_ones_one(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(20))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=80)
    first.save(tmp_path / "b.png")
    clips, rests = read(tmp_path / "a.gif", Several(per_video=None), wanted(fps=10))
    assert len(clips) == 2 and rests == 1 and [clip.start for clip in clips] == [0.0, 0.6]
    (clip,), _ = read(tmp_path / "b.png", Several(per_video=None))
    assert clip.is_image


def test_damage_is_seen_where_it_lies(tmp_path: Path) -> None:
    """What comes before it was whole; what is asked for behind it is not taken for the end."""
    path = write_numbered(tmp_path / "a.mkv", 96, options={"g": "12"})
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 300] = bytes(300)
    path.write_bytes(data)
    clips = decode_clips(path, wanted(), Several(per_video=None))
    seen = [next(clips) for _ in range(4)]
    assert numbers(seen) == runs([0, 6, 12, 18])
    with refused(DataError, file="a.mkv"):
        list(clips)


def test_the_child_streams_what_decoding_here_gives(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 45)
    ours, rests = read(path, Several(per_video=None))
    with MediaReader() as reader:
        stream = reader.clips(path, wanted(), Several(per_video=None))
        theirs = [next(stream) for _ in ours]
        with pytest.raises(StopIteration) as end:
            next(stream)
        assert end.value.value == rests
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(ours, theirs, strict=True))
        assert [clip.start for clip in ours] == [clip.start for clip in theirs]
        stream = reader.clips(path, wanted(), Several(per_video=None))
        next(stream)
        stream.close()  # amid the clips: what is left of them is not taken for the next file's
        assert np.array_equal(reader.read(path, wanted(start=0.0)).frames, ours[0].frames)


@pytest.mark.parametrize("wrong", [{"per_video": 0}, {"starts": (2.0, 1.0)}, {"starts": (-1.0,)}, {"done": -1}])
def test_requests_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Several(**wrong)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_far_behind_the_last_key_frame_and_behind_the_end(tmp_path: Path, name: str) -> None:
    """Nearer than the key frame no seeking leads: the frames between are decoded, once."""
    options = {"x264-params": "keyint=1000:scenecut=0"}
    path = write_numbered(tmp_path / name, n=21 * 12, options=options)
    with MediaReader(time_limit_s=15) as reader:
        for start in 14.0, 1.0, 13.0:
            frames = reader.read(path, wanted(start=start)).frames
            assert [number_of(frame) for frame in frames] == list(range(int(12 * start), int(12 * start) + 6))
        clips = reader.clips(path, wanted(), Several(starts=(0.0, 12.0, 19.0)))
        assert [number_of(clip.frames[0]) for clip in clips] == [0, 144, 228]
        for start in 40.0, 9e4:
            with refused(DataError, file=path, got="a video of 21.000 s"):
                reader.read(path, wanted(start=start))
