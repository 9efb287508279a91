"""Times that cannot be are refused by name, and never give a clip that stands still; slow and uneven ones are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.media.decode import decode_media
from faults.media_headers import big, little, put, with_durations
from lumos_pl.errors import DataError
from tests.data_modules.media.files import CONTAINERS, request, shown, write_flat
from tests.refusals import refused

N = 24
TICKS = 1024  # of a frame, 1/12 s
HUGE, NEGATIVE = 0x7FFFFFFF, 0xFFFFFF00
WHOLE = list(range(N))


def mp4(path: Path) -> bytes:
    return write_flat(path / "whole.mp4", N, options={"bf": "0"}).read_bytes()


NONSENSE = {
    "first frame of years": lambda data: with_durations(data, (1, HUGE), (N - 1, TICKS)),
    "first frame of 5 minutes": lambda data: with_durations(data, (1, 3600 * TICKS), (N - 1, TICKS)),
    "a frame of years inside": lambda data: with_durations(data, (9, TICKS), (1, HUGE), (N - 10, TICKS)),
    "a frame of negative length": lambda data: with_durations(data, (9, TICKS), (1, NEGATIVE), (N - 10, TICKS)),
    "a frame of no length": lambda data: with_durations(data, (1, 0), (N - 1, TICKS)),
    "half of no length": lambda data: with_durations(data, (12, TICKS), (12, 0)),
    "all of no length": lambda data: with_durations(data, (N, 0)),
    "all of a tick": lambda data: with_durations(data, (N, 1)),
    "all of years": lambda data: with_durations(data, (N, HUGE)),
    "no time scale": lambda data: put(data, b"mdhd", 12, big(0)),
    "no time scale, frames of a tick": lambda data: put(with_durations(data, (N, 1)), b"mdhd", 12, big(0)),
    "a tick of a second": lambda data: put(data, b"mdhd", 12, big(1)),
    "two thousand million ticks a second": lambda data: put(data, b"mdhd", 12, big(HUGE)),
    "a negative time scale": lambda data: put(data, b"mdhd", 12, big(0x80000000)),
    "an edit behind the end": lambda data: put(data, b"elst", 12, big(HUGE)),
    "an edit of no length": lambda data: put(data, b"elst", 8, big(0)),
    "an edit of a millisecond": lambda data: put(data, b"elst", 8, big(1)),
}


@pytest.mark.parametrize("start", [0.0, None])
@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_an_mp4_whose_times_cannot_be(nonsense: object, start: float | None, tmp_path: Path) -> None:
    file = tmp_path / "x.mp4"
    for _ in range(2):  # FFmpeg says the same thing once
        file.write_bytes(nonsense(mp4(tmp_path)))  # type: ignore[operator]
        with refused(DataError, file=file):
            decode_media(file, request(start=start))


@pytest.mark.parametrize("where", ["last", "mdhd", "tkhd", "mvhd"])
def test_times_that_no_frame_depends_on(where: str, tmp_path: Path) -> None:
    data, file = mp4(tmp_path), tmp_path / "x.mp4"
    match where:
        case "last":
            data = with_durations(data, (N - 1, TICKS), (1, HUGE))
        case "tkhd":
            data = put(data, b"tkhd", 20, big(HUGE))
        case _:
            data = put(data, where.encode(), 16, big(HUGE))
    file.write_bytes(data)
    assert shown(decode_media(file, request())) == WHOLE


@pytest.mark.parametrize(("scale", "rate"), [(0, 12), (1, 0), (1, 10**9), (10**9, 1), (1000, 12)])
def test_an_avi_whose_rate_cannot_be(scale: int, rate: int, tmp_path: Path) -> None:
    file = write_flat(tmp_path / "x.avi", N, codec="mpeg4")
    file.write_bytes(put(put(file.read_bytes(), b"strh", 24, little(scale)), b"strh", 28, little(rate)))
    with refused(DataError, file=file):
        decode_media(file, request())


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
@pytest.mark.parametrize("nanoseconds", [1, 1000])
def test_matroska_whose_ticks_cannot_be(suffix: str, nanoseconds: int, tmp_path: Path) -> None:
    codec, _ = CONTAINERS[suffix]
    file = write_flat(tmp_path / f"x.{suffix}", N, codec=codec)
    file.write_bytes(put(file.read_bytes(), b"\x2a\xd7\xb1\x83", 0, nanoseconds.to_bytes(3, "big")))
    with refused(DataError, file=file):
        decode_media(file, request())


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    ("times_ms", "where"),
    [
        ([0, 40, 80, 20_080, 20_120, 20_160, 20_200], "at 0.080 s"),
        ([0, 40, 80, 1_000_080, 1_000_120], "at 0.080 s"),
        ([0, 90_000, 180_000], "at 0.000 s"),  # nobody's slide show
    ],
)
def test_a_gap_is_named_with_its_time(suffix: str, times_ms: list[int], where: str, tmp_path: Path) -> None:
    file = write_flat(tmp_path / f"x.{suffix}", len(times_ms) - 1, codec=CONTAINERS[suffix][0], times_ms=times_ms)
    with refused(DataError, file=file, where=where):
        decode_media(file, request())
    if times_ms[1] == 40:  # a window that ends before it is whole
        assert shown(decode_media(file, request(fps=25, max_frames=3))) == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        ([1000 * i for i in range(9)], [0] * 4 + [1] * 4 + [2] * 4),  # slides
        ([8000 * i for i in range(6)], [0] * 12),
        ([0, 40_000], [0] * 12),  # one picture
        ([0, 250, 500, 2000, 2250, 2500, 2750], [0, 1] + [2] * 6 + [3, 4, 5]),  # a screen on which nothing moves
        ([0, 250, 500, 4750, 5000, 5250], [0, 1] + [2] * 10),
    ],
    ids=["slides", "slow slides", "one picture", "a pause", "a long pause"],
)
def test_slow_and_uneven_times_are_taken(suffix: str, times_ms: list[int], expected: list[int], tmp_path: Path) -> None:
    file = write_flat(tmp_path / f"x.{suffix}", len(times_ms) - 1, codec=CONTAINERS[suffix][0], times_ms=times_ms)
    assert shown(decode_media(file, request(fps=4, max_frames=12))) == expected
