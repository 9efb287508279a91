"""Every frame at its time, upright and whole; or an error that says why not."""

from __future__ import annotations

import math
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from data_modules.media.decode import ClipRequest, decode_media
from lumos_pl.errors import ConfigError, DataError
from tests.data_modules.media.files import CONTAINERS, quadrants, request, shade, shown, write_flat, write_video
from tests.refusals import refused

# -- times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_container_gives_every_frame(tmp_path: Path, suffix: str) -> None:
    codec, pixel_format = CONTAINERS[suffix]
    path = write_flat(
        tmp_path / f"a.{suffix}", 50, codec=codec, pixel_format=pixel_format, options={"g": "10", "b": "4000000"}
    )
    whole = decode_media(path, request(max_frames=60))
    assert shown(whole) == [i % 25 for i in range(50)]
    assert (whole.fps, whole.is_image, whole.frames.shape) == (12, False, (50, 64, 64, 3))
    assert shown(decode_media(path, request(max_frames=5, start=31 / 12))) == [6, 7, 8, 9, 10]
    assert shown(decode_media(path, request(max_frames=4, start=None))) == [23, 24, 0, 1]


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 2), ("libx265", 0), ("libx265", 2)])
def test_a_clip_amid_frames_that_refer_to_earlier_ones(codec: str, b_frames: int, tmp_path: Path) -> None:
    """MPEG-TS has no index: its demuxer goes where nothing can be decoded yet."""
    path = write_flat(tmp_path / "a.ts", 25, codec=codec, options={"bf": str(b_frames)})
    for start in 7, 12, 20:
        assert shown(decode_media(path, request(max_frames=4, start=start / 12))) == list(range(start, start + 4))


@pytest.mark.parametrize(
    ("fps", "expected"), [(24, [0, 0, 1, 1, 2, 2]), (6, [0, 2, 4]), (8, [0, 1, 3, 4]), (36, [0, 0, 0, 1, 1, 1])]
)
def test_constant_rate_is_resampled(tmp_path: Path, fps: int, expected: list[int]) -> None:
    clip = decode_media(write_flat(tmp_path / "a.mp4", 12), request(fps=fps, max_frames=len(expected)))
    assert shown(clip) == expected
    assert clip.fps == fps


def test_the_last_frame_stays_for_its_duration(tmp_path: Path) -> None:
    assert len(decode_media(write_flat(tmp_path / "a.mp4", 20, rate=10), request(max_frames=99)).frames) == 24
    held = write_flat(tmp_path / "b.mp4", 2, times_ms=[0, 100, 1000])
    assert shown(decode_media(held, request(fps=10))) == [0] + [1] * 9


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_its_pace(tmp_path: Path, suffix: str) -> None:
    times = [0, 40, 80, 500, 540, 1000, 1010, 1400, 1960, 2000]
    path = write_flat(tmp_path / f"a.{suffix}", len(times) - 1, times_ms=times)
    clip = decode_media(path, request(fps=25, max_frames=99))
    expected = [max(n for n, time in enumerate(times[:-1]) if time <= 40 * i) for i in range(50)]
    assert shown(clip)[:49] == expected[:49]  # Matroska does not know how long the last frame stays
    if suffix == "mp4":
        assert shown(clip) == expected


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.mkv", 6, times_ms=[5000 + 100 * i for i in range(7)])
    assert shown(decode_media(path, request(fps=10, start=0.2))) == [2, 3, 4, 5]
    assert shown(decode_media(path, request(fps=10, start=None, max_frames=2))) == [2, 3]


def test_time_stamps_that_go_back_are_refused(tmp_path: Path) -> None:
    straight, path = (
        write_flat(tmp_path / "straight.mkv", 4, codec="mjpeg", pixel_format="yuvj420p"),
        tmp_path / "a.mkv",
    )
    with av.open(str(straight)) as given, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for dts, (packet, pts) in enumerate(zip(given.demux(video=0), (3, 83, 250, 167), strict=False)):
            packet.dts, packet.pts, packet.stream = dts, pts, stream
            output.mux(packet)
    with refused(DataError, file="a.mkv"):
        decode_media(path, request())


def test_a_window_longer_than_the_video_gives_what_is_there(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.mp4", 10)
    assert shown(decode_media(path, request(start=None))) == list(range(10))
    assert shown(decode_media(path, request(start=0.5))) == [6, 7, 8, 9]
    with refused(DataError, file="a.mp4", got="4 frames at 12 fps", expected="at least 5"):
        decode_media(path, request(start=0.5, min_frames=5))
    with refused(DataError, file="a.mp4", got="a video of 0.833 s"):
        decode_media(path, request(start=0.84))


def test_one_frame(tmp_path: Path) -> None:
    assert shown(decode_media(write_flat(tmp_path / "a.mp4", 1), request())) == [0]
    assert shown(decode_media(write_flat(tmp_path / "b.mp4", 1, rate=2), request())) == [0] * 6


# -- geometry ------------------------------------------------------------------------------------------


def corners(frame: NDArray[np.uint8]) -> str:
    """The quadrants' colours, top left, top right, bottom left, bottom right."""
    height, width, _ = frame.shape
    names = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True, True, True): "W"}
    bright = [frame[y * height // 4, x * width // 4] > 128 for y in (1, 3) for x in (1, 3)]
    return "".join(names[bool(red), bool(green), bool(blue)] for red, green, blue in bright)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((0, False, False), "RGBW"),
        ((90, False, False), "GWRB"),  # counter-clockwise
        ((180, False, False), "WBGR"),
        ((270, False, False), "BRWG"),
        ((0, True, False), "GRWB"),
        ((0, False, True), "BWRG"),
    ],
)
def test_the_display_matrix_is_applied(tmp_path: Path, rotation: tuple[float, bool, bool], expected: str) -> None:
    path = write_video(tmp_path / "a.mp4", [quadrants((128, 64))] * 3, rotation=rotation)
    frame = decode_media(path, request(sizes=((128, 64), (64, 128)))).frames[1]
    assert corners(frame) == expected
    assert frame.shape == ((128, 64, 3) if rotation[0] in (90, 270) else (64, 128, 3))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    tall = write_video(tmp_path / "a.mp4", [quadrants((64, 64))] * 2, pixel_aspect=Fraction(2, 1))
    wide_request = request(sizes=((64, 64), (64, 32), (32, 64)))
    assert decode_media(tall, wide_request).frames.shape[1:3] == (32, 64)
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 24:40] = 255
    frame = decode_media(write_video(tmp_path / "c.mp4", [square] * 2, pixel_aspect=Fraction(2, 1)), request()).frames[
        0
    ]
    assert frame[:, 32].mean(1).sum() / 255 == pytest.approx(32, abs=1.5)
    assert frame[32].mean(1).sum() / 255 == pytest.approx(32, abs=1.5)
    turned = write_video(
        tmp_path / "b.mp4", [quadrants((64, 64))] * 2, pixel_aspect=Fraction(2, 1), rotation=(90, False, False)
    )
    frame = decode_media(turned, wide_request).frames[0]
    assert frame.shape[:2] == (64, 32)
    assert corners(frame) == "GWRB"


def test_the_crop_is_centred_and_keeps_the_aspect(tmp_path: Path) -> None:
    picture = np.zeros((65, 201, 3), np.uint8)  # odd sizes: 4:4:4
    picture[12:53, 80:121] = 255  # a square of 41 px around the centre
    path = write_video(tmp_path / "a.mp4", [picture] * 2, pixel_format="yuv444p", options={"crf": "4"})
    frame = decode_media(path, request(sizes=((130, 130),))).frames[0].astype(float) / 255
    rows, cols = frame[:, 65].mean(1).sum(), frame[65].mean(1).sum()
    assert rows == pytest.approx(82, abs=1)
    assert cols == pytest.approx(82, abs=1)
    across = frame.mean((0, 2))
    assert (across * np.arange(130)).sum() / across.sum() == pytest.approx(64.5, abs=0.3)


def test_reduction_averages_over_the_area(tmp_path: Path) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    frame = decode_media(tmp_path / "a.png", request()).frames[0]
    assert np.abs(frame[:, 4:-4].astype(int) - 127).max() <= 2


# -- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", 12), ("WEBP", 12), ("BMP", 0)])
def test_images_are_one_frame_whatever_their_suffix(tmp_path: Path, kind: str, tolerance: int) -> None:
    path = tmp_path / "a.mp4"
    Image.fromarray(quadrants((64, 64))).save(path, format=kind)
    clip = decode_media(path, request(min_frames=5))
    assert (clip.is_image, clip.fps, clip.frames.shape) == (True, 1, (1, 64, 64, 3))
    inside = np.abs(clip.frames[0, 4:28, 4:28].astype(int) - (255, 0, 0))
    assert inside.max() <= tolerance


def test_exif_orientation_transparency_and_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(quadrants((64, 64))).save(tmp_path / "a.png", exif=exif)
    assert corners(decode_media(tmp_path / "a.png", request()).frames[0]) == "BRWG"
    Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(tmp_path / "b.png")
    assert decode_media(tmp_path / "b.png", request()).frames.max() == 0
    Image.fromarray(np.full((64, 64), 100 << 8, np.uint16)).save(tmp_path / "c.png")
    assert set(decode_media(tmp_path / "c.png", request()).frames.flat) == {100}
    of_two = np.repeat(np.array([[65535, 100 << 8]], np.uint16), 32, 1).repeat(64, 0)
    Image.fromarray(of_two).save(tmp_path / "d.png")
    write_chunk(tmp_path / "d.png", b"tRNS", b"\xff\xff")  # white is transparent
    left, right = np.split(decode_media(tmp_path / "d.png", request()).frames[0], [32], axis=1)
    assert left[:, :30].max() == 0 and set(right[:, 2:].flat) == {100}


def write_chunk(path: Path, kind: bytes, data: bytes) -> None:
    """Add a part to a PNG before its pixels."""
    chunk, png = len(data).to_bytes(4, "big") + kind + data, path.read_bytes()
    place = png.index(b"IDAT") - 4
    path.write_bytes(png[:place] + chunk + zlib.crc32(chunk[4:]).to_bytes(4, "big") + png[place:])


def test_a_large_colour_profile_is_no_damage(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png", icc_profile=profile + bytes(3 << 20))
    assert decode_media(tmp_path / "a.png", request()).frames[0, 0, 0].tolist() == [0, 128, 128]


def test_images_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with refused(DataError, file="a.heic"):
        decode_media(tmp_path / "a.heic", request())
    Image.new("1", (16_385, 1)).save(tmp_path / "c.png")
    with refused(DataError, file="c.png", got="16385x1 px"):
        decode_media(tmp_path / "c.png", request())
    for side in 10_100, 13_400:  # Pillow warns of the one, and refuses the other by itself
        Image.new("1", (side, side)).save(tmp_path / "c.png")
        with warnings.catch_warnings(), refused(DataError, file="c.png") as found:
            warnings.simplefilter("error")
            decode_media(tmp_path / "c.png", request())
        assert "Mpx" in str(found.value.expected)
    Image.fromarray(quadrants((64, 64))).save(tmp_path / "d.png")
    (tmp_path / "d.png").write_bytes((tmp_path / "d.png").read_bytes()[:-60])
    with refused(DataError, file="d.png"):
        decode_media(tmp_path / "d.png", request())


@pytest.mark.parametrize(
    "changes",
    [{"fps": 0}, {"max_frames": 0}, {"min_frames": 0}, {"min_frames": 25}, {"sizes": ()}, {"sizes": ((0, 8),)}]
    + [{"start": value} for value in (-0.1, math.nan, math.inf)],
)
def test_wrong_requests_are_refused(changes: dict[str, object]) -> None:
    with refused(ConfigError, where=next(iter(changes))):
        request(**changes)


def test_real_videos(shared: Path) -> None:
    paths = sorted((shared / "real" / "videos").iterdir())
    assert paths
    for path in paths:
        clip = decode_media(path, ClipRequest(sizes=((448, 256), (256, 480)), fps=12, max_frames=24))
        assert clip.frames.shape == (24, 256, 448, 3)


def test_shades_differ() -> None:
    assert len({shade(i) for i in range(25)}) == 25
