"""Videos that were cut or repeated where containers allow it: they begin and end where a player has them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from data_modules.media.decode import ClipRequest, Several, decode_clips
from faults.numbered import SIZE, clip_of, number_of, write_numbered
from lumos_pl.errors import DataError
from tests.refusals import refused

GROUP = 24  # pictures


def shown(path: Path, *, fps: int = 25) -> list[int]:
    """The numbers of all pictures, a clip of six after the other."""
    clips = decode_clips(path, ClipRequest(sizes=(SIZE,), fps=fps, max_frames=6), Several(per_video=None))
    return [number_of(frame) for clip in clips for frame in clip.frames]


def write_broadcast(path: Path, *, part: float = 1 / 3, **how: Any) -> Path:
    """A transport stream of 96 pictures without its beginning."""
    data = write_numbered(path, 96, rate=25, gop=GROUP, **how).read_bytes()
    path.write_bytes(data[188 * int(part * len(data) / 188) :])
    return path


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {}),
        ("libx264", {"x264-params": "ref=1:bframes=0"}),
        ("libx265", {"x265-params": f"log-level=none:keyint={GROUP}"}),
        ("mpeg4", {}),
        ("mpeg2video", {}),
    ],
)
def test_a_broadcast_that_is_cut_amid_a_group_begins_with_the_next(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    path = write_broadcast(tmp_path / "a.ts", codec=codec, options=options)
    numbers = shown(path)
    assert numbers[0] in (GROUP, 2 * GROUP)
    assert numbers == [*range(numbers[0], 96)]
    later = clip_of(path, fps=25, start=1.0, n=6).frames
    assert [number_of(frame) for frame in later] == [*range(numbers[0] + 25, numbers[0] + 31)]


def test_a_broadcast_that_is_cut_amid_an_open_group_is_not_called_damaged(tmp_path: Path) -> None:
    options = {"x264-params": f"open-gop=1:keyint={GROUP}:bframes=3"}
    path = write_broadcast(tmp_path / "a.ts", options=options)
    with refused(DataError, file="a.ts", fix="`ffmpeg -i FILE -c:v ffv1 FILE.mkv`"):
        clip_of(path, fps=25, start=0.0)


def test_damage_behind_the_first_group_of_a_broadcast_is_damage(tmp_path: Path) -> None:
    path = write_broadcast(tmp_path / "a.ts", part=0.1, noise=0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 188 // 2 * 188
    for packet in range(middle, middle + 20 * 188, 188):
        data[packet + 100 : packet + 188] = bytes(88)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        shown(path)
    assert "group of pictures" not in str(caught.value)


def rewrite_avi(path: Path, repeats: dict[int, int]) -> Path:
    """Put so many empty chunks behind some pictures, as programs that record a screen do for one that did not change.

    Args:
        repeats: by the number of the picture.
    """
    data = path.read_bytes()
    movi, index = data.index(b"movi"), data.rindex(b"idx1") + 8
    n_pictures = int.from_bytes(data[index - 4 : index], "little") // 16
    content, entries, place = bytearray(b"movi"), bytearray(), movi + 4
    for number in range(n_pictures):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        chunk = data[place : place + 8 + length + length % 2]
        flags = int.from_bytes(data[index + 16 * number + 4 : index + 16 * number + 8], "little")
        for one, flag in (chunk, flags), *[(b"00dc" + bytes(4), 0)] * repeats.get(number, 0):
            entries += struct.pack("<4sIII", b"00dc", flag, len(content), int.from_bytes(one[4:8], "little"))
            content += one
        place += len(chunk)
    head = bytearray(data[: movi - 8])
    n_chunks = n_pictures + sum(repeats.values())
    struct.pack_into("<I", head, head.index(b"avih") + 24, n_chunks)
    struct.pack_into("<I", head, head.index(b"strh") + 40, n_chunks)
    body = head + b"LIST" + struct.pack("<I", len(content)) + content
    body += b"idx1" + struct.pack("<I", len(entries)) + entries
    struct.pack_into("<I", body, 4, len(body) - 8)
    path.write_bytes(body)
    return path


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_may_repeat_its_pictures_at_its_end_too(tmp_path: Path, codec: str) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_numbered(tmp_path / "a.avi", 20, codec=codec, pixels=pixels)
    assert shown(rewrite_avi(path, {3: 2, 19: 8}), fps=12) == [0, 1, 2, 3, 3, *range(3, 20), *[19] * 8]
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"idx1")])
    with refused(DataError, file="a.avi"):  # without an index nobody says that there were repeats
        shown(path, fps=12)
    path.write_bytes(whole + bytes(1 << 20))
    assert len(shown(path, fps=12)) == 30
