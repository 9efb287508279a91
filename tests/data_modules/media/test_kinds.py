"""Every kind of media: what is read shows the frame that is due in its colours, what is not is refused by its name."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from data_modules.media.decode import ClipRequest, decode_media
from data_modules.media.reader import MediaReader
from faults.media_kinds import PICTURE, PICTURES, UNEVEN, VIDEOS, remux, save_png, tell_no_matrix
from faults.numbered import COLORS, SIZE, clip_of, colors_of, number_of, numbered, write_numbered
from lumos_pl.errors import DataError
from tests.refusals import refused


def due(how: dict[str, Any]) -> list[int]:
    """Which picture is on screen at 1 s and after, each twelfth of a second."""
    times = how.get("times_ms") or [1000 * i / how.get("rate", 12) for i in range(how.get("n", 48))]
    return [max(i for i, time in enumerate(times) if time <= 1000 + 1000 * step / 12 + 1) for step in range(12)]


@pytest.mark.parametrize("kind", VIDEOS)
def test_every_frame_is_the_one_that_is_due_in_its_colours(tmp_path: Path, kind: str) -> None:
    how = dict(VIDEOS[kind])
    expected, untold = due(how), how.pop("untold", False)
    path = write_numbered(tmp_path / how.pop("name"), **how)
    if untold:
        tell_no_matrix(path)
    size = how.get("size", SIZE) if "prepare" not in how else SIZE
    frames = clip_of(path, size=size).frames
    assert [number_of(frame) for frame in frames] == expected
    assert np.abs(colors_of(frames[0]) - np.array(COLORS)).max() < 10


# -- high dynamic range and wide gamuts ------------------------------------------------------------

BT2020_OF_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087


def pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signal of SMPTE ST 2084 for so many cd/m2, as the standard writes it."""
    y = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def write_wide(path: Path, signals: list[NDArray[np.float64]], *, primaries: int, transfer: int, matrix: int) -> Path:
    """Six equal frames of eight columns of R'G'B' signals in [0, 1], as HEVC of 10 bits."""
    picture = np.zeros((96, 128, 3), np.uint16)
    for i, signal in enumerate(signals):
        picture[:, 16 * i : 16 * i + 16] = np.rint(signal * 65535)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx265", rate=12, options={"x265-params": "log-level=none:lossless=1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 1
        context.color_primaries, context.color_trc = primaries, transfer
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=matrix, dst_color_range=1)
            frame.colorspace, frame.color_range = matrix, 1
            frame.color_primaries, frame.color_trc = primaries, transfer
            frame.pts, frame.time_base = i, Fraction(1, 12)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def columns(path: Path) -> NDArray[np.float64]:
    frame = decode_media(path, ClipRequest(sizes=(SIZE,), fps=12, max_frames=1, start=0.0)).frames[0]
    return np.array([frame[16:80, 16 * i + 4 : 16 * i + 12].mean((0, 1)) for i in range(8)])


def test_pq_is_brought_to_a_screen_of_today(tmp_path: Path) -> None:
    grey = np.array([10.0, 40.0, 80.0, 203.0, 600.0, 1000.0, 4000.0])
    red = BT2020_OF_BT709 @ np.array([60.0, 0, 0])
    signals = [pq(np.full(3, light)) for light in grey] + [pq(red)]
    shown = columns(write_wide(tmp_path / "a.mp4", signals, primaries=9, transfer=16, matrix=9))
    below_the_knee = (grey[:3] / 203) ** (1 / 2.2) * 255
    assert np.abs(shown[:3] - below_the_knee[:, None]).max() < 4
    brightness = shown[:7].mean(1)
    assert (np.diff(brightness[:6]) > 0).all()  # nothing between black and 1,000 cd/m2 is lost
    assert 180 < brightness[3] < 240 and brightness[5] > 250 and brightness[6] > 250
    assert abs(shown[7][0] - (60 / 203) ** (1 / 2.2) * 255) < 6 and shown[7][1:].max() < 12


def test_hlg_is_brought_to_a_screen_of_today(tmp_path: Path) -> None:
    signals = [np.full(3, signal) for signal in (0.1, 0.2, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0)]
    shown = columns(write_wide(tmp_path / "a.mp4", signals, primaries=9, transfer=18, matrix=9)).mean(1)
    for i, signal in enumerate((0.1, 0.2, 0.3, 0.5)):  # BT.2100: E = E'^2 / 3, then 1,000 E^1.2 on the display
        assert abs(shown[i] - (1000 * (signal**2 / 3) ** 1.2 / 203) ** (1 / 2.2) * 255) < 4
    assert (np.diff(shown) > 0).all() and shown[-1] > 250


def told(path: Path, primaries: int, transfer: int) -> Path:
    """A picture that says these code points: an AVIF in its box, a PNG in a part of its own."""
    data = path.read_bytes()
    if path.suffix == ".avif":
        place = data.index(b"colrnclx") + 8
        data = data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]
    else:
        part = b"cICP" + bytes([primaries, transfer, 0, 1])
        data = data[:33] + struct.pack(">I", 4) + part + struct.pack(">I", zlib.crc32(part)) + data[33:]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.avif", "a.png"])
def test_pictures_of_high_dynamic_range_and_wide_gamuts(tmp_path: Path, name: str) -> None:
    def shown(rgb: NDArray[np.float64], primaries: int, transfer: int) -> NDArray[np.uint8]:
        picture = np.broadcast_to(np.rint(rgb * 255).astype(np.uint8), (96, 128, 3))
        options = {} if name == "a.png" else {"quality": 100, "subsampling": "4:4:4"}
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / name, **options)  # type: ignore[arg-type]
        return clip_of(told(tmp_path / name, primaries, transfer)).frames[0, 48, 64]

    assert np.abs(shown(pq(np.full(3, 40.0)), 9, 16) - (40 / 203) ** (1 / 2.2) * 255).max() < 6
    assert shown(np.full(3, 0.3), 9, 18) == pytest.approx((1000 * 0.03**1.2 / 203) ** (1 / 2.2) * 255, abs=6)
    of_2020 = (BT2020_OF_BT709 @ (np.array(COLORS[7]) / 255) ** 2.2) ** (1 / 2.2)
    assert np.abs(shown(of_2020, 9, 1) - np.array(COLORS[7])).max() < 12
    assert shown(np.array([1.0, 0, 0]), 12, 13)[0] > 250
    assert np.abs(shown(np.array(COLORS[7]) / 255, 1, 13) - np.array(COLORS[7])).max() < 4
    shown(np.full(3, 0.3), 9, 16)
    with refused(DataError, file=name, got="PQ"):
        decode_media(tmp_path / name, ClipRequest(sizes=(SIZE,), fps=12, max_frames=1, hdr="refuse"))


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_can_be_refused(tmp_path: Path, transfer: int) -> None:
    path = write_wide(tmp_path / "a.mp4", [np.full(3, 0.5)] * 8, primaries=9, transfer=transfer, matrix=9)
    with refused(DataError, file="a.mp4", got={16: "PQ", 18: "HLG"}[transfer]):
        decode_media(path, ClipRequest(sizes=(SIZE,), fps=12, max_frames=1, start=0.0, hdr="refuse"))


def test_wide_gamuts_of_ordinary_range(tmp_path: Path) -> None:
    of_2020 = [(BT2020_OF_BT709 @ (np.array(color) / 255) ** 2.2) ** (1 / 2.2) for color in COLORS]
    shown = columns(write_wide(tmp_path / "a.mp4", of_2020, primaries=9, transfer=14, matrix=9))
    assert np.abs(shown - np.array(COLORS)).max() < 12
    # Display P3's red is outside of sRGB, its greys are the same
    p3 = [np.array(color) for color in [(1.0, 0, 0), (0, 1.0, 0), (0.5, 0.5, 0.5), (1, 1, 1)] * 2]
    shown = columns(write_wide(tmp_path / "b.mp4", p3, primaries=12, transfer=1, matrix=1))
    assert shown[0][0] > 250 and shown[0][1] < 4
    assert np.abs(shown[2] - 127.5).max() < 3 and shown[3].min() > 250


def test_colours_that_would_be_shown_wrong_are_refused_by_their_name(tmp_path: Path) -> None:
    for name, codec, options in (
        ("YCgCo", "libx264", {"x264-params": "colormatrix=YCgCo"}),
        ("BT.2020, constant luminance", "libx264", {"x264-params": "colormatrix=bt2020c"}),
        ("ICtCp", "libx265", {"x265-params": "log-level=none:colormatrix=ictcp"}),
    ):
        # Without B-frames: of so few pictures x265 now and then gives times of decoding that no file takes.
        path = write_numbered(tmp_path / "a.mp4", 2, codec=codec, pixels="yuv420p10le", options=options, b_frames=0)
        with refused(DataError, file="a.mp4", got=name) as caught:
            clip_of(path, start=0.0)
        assert "colours" in caught.value.what and caught.value.fix


def test_dolby_vision_is_the_picture_below_it_where_there_is_one(tmp_path: Path) -> None:
    def written(**how: Any) -> Path:
        how = {"codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": "log-level=none"}, **how}
        path = write_numbered(tmp_path / "a.mp4", **how)
        path.write_bytes(path.read_bytes().replace(b"hev1", b"dvh1", 1))
        return path

    assert number_of(clip_of(written(matrix=9, hdr=18)).frames[0]) == 12
    with refused(DataError, file="a.mp4", got="Dolby Vision without another picture"):
        clip_of(written())


def tell_colours(path: Path, primaries: int, transfer: int, matrix: int) -> Path:
    """Have an MP4 say of its colours what its video does not."""
    data = bytearray(path.read_bytes())
    box = struct.pack(">I4s4sHHHB", 19, b"colr", b"nclx", primaries, transfer, matrix, 0)
    entry = data.index(b"stsd") + 12
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    data[end:end] = box
    for place in (entry, *(data.rindex(name, 0, entry) - 4 for name in (b"stsd", b"stbl", b"minf", b"mdia", b"trak"))):
        struct.pack_into(">I", data, place, int.from_bytes(data[place : place + 4], "big") + len(box))
    moov = data.rindex(b"moov") - 4  # behind all pictures, whose places stay
    struct.pack_into(">I", data, moov, int.from_bytes(data[moov : moov + 4], "big") + len(box))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_colours_that_the_container_alone_tells(tmp_path: Path, codec: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    how: dict[str, Any] = {"codec": codec, "options": options, "b_frames": 0}
    untold = write_numbered(tmp_path / "a.mp4", 2, **how)
    plain = colors_of(clip_of(untold, start=0.0, n=1).frames[0])
    with refused(DataError, file="a.mp4", got="PQ"):
        request = ClipRequest(sizes=(SIZE,), fps=12, max_frames=1, start=0.0, hdr="refuse")
        decode_media(tell_colours(untold, 9, 16, 9), request)
    path = write_numbered(tmp_path / "b.mp4", 2, matrix=1, **how)
    for tag in (b"hev1", b"avc1", b"vp09"):  # what it says itself counts
        if tag in path.read_bytes():
            path = tell_colours(path, 1, 1, 6)
    assert np.abs(colors_of(clip_of(path, start=0.0, n=1).frames[0]) - np.array(COLORS)).max() < 10
    path = tell_colours(write_numbered(tmp_path / "c.mp4", 2, **how), 1, 1, 1)
    assert np.abs(colors_of(clip_of(path, start=0.0, n=1).frames[0]) - plain).max() > 15  # of BT.601 as BT.709


# -- fields, tracks, edit lists --------------------------------------------------------------------


def test_fields_of_two_moments_become_one_picture(tmp_path: Path) -> None:
    def fields(i: int) -> NDArray[np.uint8]:
        """A bright bar that has moved by 4 pixels between the two fields, and by 8 from picture to picture."""
        picture = np.full((96, 128, 3), 16, np.uint8)
        picture[0::2, 8 * i : 8 * i + 32] = 235
        picture[1::2, 8 * i + 4 : 8 * i + 36] = 235
        return picture

    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv422p", 8_000_000
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(fields(i), format="rgb24").reformat(format="yuv422p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    frames = decode_media(path, ClipRequest(sizes=(SIZE,), fps=25, max_frames=8, start=0.0)).frames
    assert len(frames) == 8
    for i in range(1, 7):
        picture = frames[i].astype(int)
        combing = np.abs(picture[20:76:2] - (picture[19:75:2] + picture[21:77:2]) / 2).mean()
        raw = fields(i).astype(int)
        assert combing < 0.35 * np.abs(raw[20:76:2] - (raw[19:75:2] + raw[21:77:2]) / 2).mean()
        assert picture[40, 8 * i + 8 : 8 * i + 28].min() > 150  # seen by both fields


@pytest.mark.parametrize(
    ("name", "n", "how"),
    [
        ("a.mkv", 4, {"rate": Fraction(1, 10)}),
        ("a.mp4", 4, {"rate": Fraction(1, 10)}),
        ("a.mp4", 12, {"options": {"x264-params": "tff=1"}}),
        ("a.ts", 25, {"codec": "mpeg2video", "rate": 25, "options": {"flags": "+ildct+ilme"}}),
    ],
)
def test_a_video_ends_when_its_last_frame_does(tmp_path: Path, name: str, n: int, how: dict[str, Any]) -> None:
    path = write_numbered(tmp_path / name, n, **how)
    seconds = n / Fraction(how.get("rate", 12))
    shown = [number_of(frame) for frame in clip_of(path, start=0.0, n=999).frames]
    assert shown == [int(n * i / (12 * seconds)) for i in range(int(12 * seconds))]


def test_an_edit_list_cuts_what_lies_before_its_start(tmp_path: Path) -> None:
    source = write_numbered(tmp_path / "a.mp4", gop=8)
    with av.open(str(source)) as read:
        base = read.streams.video[0].time_base
        assert base is not None
        second = int(1 / base)
    cut = remux(source, tmp_path / "b.mp4", shift=-second)
    assert [number_of(frame) for frame in clip_of(cut, start=0.0, n=6).frames] == [12, 13, 14, 15, 16, 17]


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = remux(write_numbered(tmp_path / "a.mp4"), tmp_path / "b.mp4", cover=True)
    assert number_of(clip_of(path).frames[0]) == 12


def write_two(path: Path, *, gops: tuple[int, int], shown: int, n: int = 48) -> Path:
    """Two videos beside each other, of which one is the default; the other's numbers are 100 more."""
    with av.open(str(path), "w") as file:
        streams: list[Any] = [file.add_stream("libx264", rate=12) for _ in gops]
        for index, (stream, gop) in enumerate(zip(streams, gops, strict=True)):
            (stream.width, stream.height), stream.pix_fmt, stream.codec_context.gop_size = SIZE, "yuv420p", gop
            stream.disposition = av.stream.Disposition.default if index == shown else av.stream.Disposition(0)
        for i in range(n):
            for index, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(numbered(i % 100 + 100 * (index != shown)), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 12)
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize("shown", [0, 1])
def test_of_several_videos_the_default_one_is_shown(tmp_path: Path, name: str, shown: int) -> None:
    path = write_two(tmp_path / name, gops=(250, 12), shown=shown)
    assert [number_of(frame) for frame in clip_of(path, start=2.5, n=3).frames] == [30, 31, 32]


def test_an_index_of_another_video_is_not_sought_in_without_an_end(tmp_path: Path) -> None:
    path = write_two(tmp_path / "a.mkv", gops=(250, 12), shown=0, n=250)
    request = ClipRequest(sizes=(SIZE,), fps=12, max_frames=3, start=15.0)
    with MediaReader(time_limit_s=15) as reader:
        assert [number_of(frame) for frame in reader.read(path, request).frames] == [80, 81, 82]


@pytest.mark.parametrize("degrees", [90.0, 180.0, 270.0])
def test_a_turned_video_is_turned_back(tmp_path: Path, degrees: float) -> None:
    path = write_numbered(tmp_path / "a.mp4", prepare=lambda stream: stream.set_display_rotation(degrees, False, False))
    size = SIZE if degrees == 180.0 else (SIZE[1], SIZE[0])
    frame = clip_of(path, size=size).frames[0]
    assert number_of(np.rot90(frame, -degrees // 90)) == 12


def test_a_mirrored_video_is_mirrored(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", prepare=lambda stream: stream.set_display_rotation(0.0, True, False))
    assert number_of(clip_of(path).frames[0][:, ::-1]) == 12


def test_frames_before_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", first=-24, container_options={"avoid_negative_ts": "disabled"})
    assert [number_of(frame) for frame in clip_of(path, n=3).frames] == [36, 37, 38]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_transparency_that_would_be_passed_over_is_refused(tmp_path: Path, codec: str) -> None:
    options = {"auto-alt-ref": "0"}
    path = write_numbered(tmp_path / "a.webm", 12, codec=codec, pixels="yuva420p", options=options)
    with refused(DataError, file="a.webm") as caught:
        clip_of(path, start=0.0)
    assert "transparent" in caught.value.what and codec in str(caught.value.fix)


def test_grey_videos(tmp_path: Path) -> None:
    for name, codec, pixels in ("a.mp4", "libx264", "gray"), ("a.mkv", "ffv1", "gray"), ("a.mov", "png", "monob"):
        path = write_numbered(tmp_path / name, 24, codec=codec, pixels=pixels)
        frame = clip_of(path, n=1).frames[0]
        assert number_of(frame) == 12 and np.ptp(frame.astype(int), axis=-1).max() <= 2


def test_what_is_transparent_in_a_video_lies_on_black(tmp_path: Path) -> None:
    rgba = np.dstack([numbered(3), np.where(np.arange(SIZE[0]) < 64, 255, 0)[None].repeat(SIZE[1], 0).astype(np.uint8)])
    with av.open(str(tmp_path / "a.mov"), "w") as file:
        stream: Any = file.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "rgba"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    shown = clip_of(tmp_path / "a.mov", start=0.0, n=2).frames[0]
    assert np.abs(colors_of(shown)[:4] - np.array(COLORS[:4])).max() < 4 and shown[:, 70:].max() == 0


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_in_their_colours(tmp_path: Path, name: str) -> None:
    PICTURES[name](tmp_path / name)
    clip = clip_of(tmp_path / name)
    assert clip.is_image and number_of(clip.frames[0]) == 5
    assert np.abs(colors_of(clip.frames[0]) - np.array(COLORS)).max() < 10


@pytest.mark.parametrize("gamma", [1.0, 0.55556, 0.45455])
def test_values_of_a_png_are_as_it_says_that_they_follow_from_light(tmp_path: Path, gamma: float) -> None:
    stored = np.rint(255 * (numbered(5) / 255) ** (gamma / 0.45455)).astype(np.uint8)
    save_png(Image.fromarray(stored), tmp_path / "a.png", gAMA=struct.pack(">I", round(100_000 * gamma)))
    shown = clip_of(tmp_path / "a.png").frames[0]
    assert number_of(shown) == 5 and np.abs(colors_of(shown) - np.array(COLORS)).max() < 10


def test_a_png_that_is_in_srgb_is_so_whatever_else_it_says(tmp_path: Path) -> None:
    save_png(PICTURE, tmp_path / "a.png", gAMA=struct.pack(">I", 100_000), sRGB=b"\0")
    assert np.abs(colors_of(clip_of(tmp_path / "a.png").frames[0]) - np.array(COLORS)).max() < 4


@pytest.mark.parametrize("depth", ["8 bits.png", "16 bits.png", "a.jpg", "a.bmp"])
def test_grey_pictures(tmp_path: Path, depth: str) -> None:
    grey = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(96, 0)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if depth.startswith("16") else Image.fromarray(grey)
    picture.save(tmp_path / depth, **({"quality": 100} if depth == "a.jpg" else {}))
    assert np.abs(clip_of(tmp_path / depth).frames[0].astype(int) - grey[..., None]).max() < 3


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_pictures_are_turned_by_their_orientation(tmp_path: Path, name: str) -> None:
    turn = Image.Transpose
    stored = turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90
    for orientation, how in enumerate((*stored, turn.TRANSVERSE, turn.ROTATE_270), start=2):
        exif = Image.Exif()
        exif[0x0112] = orientation
        PICTURE.transpose(how).save(tmp_path / name, exif=exif)
        frame = clip_of(tmp_path / name).frames[0]
        assert number_of(frame) == 5 and colors_of(frame)[2].argmax() == 0, orientation


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.avif"])
def test_pictures_that_move_are_videos(tmp_path: Path, name: str) -> None:
    durations = [100, 300, 50, 250, 100, 100, 400, 200]
    first, *rest = (Image.fromarray(numbered(i)) for i in range(8))
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=durations)
    clip = decode_media(tmp_path / name, ClipRequest(sizes=(SIZE,), fps=10, max_frames=99, start=0.0))
    assert not clip.is_image and clip.fps == 10
    ends = np.cumsum(durations)
    assert [number_of(frame) for frame in clip.frames] == [int((ends <= 100 * i).sum()) for i in range(15)]
    middle = decode_media(tmp_path / name, ClipRequest(sizes=(SIZE,), fps=10, max_frames=5))
    assert [number_of(frame) for frame in middle.frames] == [int((ends <= 500 + 100 * i).sum()) for i in range(5)]


def test_a_picture_for_who_cannot_show_what_moves_is_not_part_of_it(tmp_path: Path) -> None:
    moving = [Image.fromarray(numbered(i)) for i in range(4)]
    for n, expected in (4, [0, 1, 2, 3]), (1, [0]):
        path = tmp_path / f"{n}.png"
        Image.fromarray(numbered(99)).save(
            path, save_all=True, append_images=moving[:n], duration=100, default_image=True
        )
        clip = decode_media(path, ClipRequest(sizes=(SIZE,), fps=10, max_frames=99, start=0.0))
        assert [number_of(frame) for frame in clip.frames] == expected


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_frames_of_a_gif_whatever_becomes_of_the_one_before(tmp_path: Path, disposal: int) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(6))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=100, disposal=disposal, loop=3)
    clip = decode_media(tmp_path / "a.gif", ClipRequest(sizes=(SIZE,), fps=10, max_frames=99, start=0.0))
    assert [number_of(frame) for frame in clip.frames] == [0, 1, 2, 3, 4, 5]


def test_frames_without_a_duration_of_their_own_last_as_browsers_have_it(tmp_path: Path) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(4))
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=0)
    clip = decode_media(tmp_path / "a.gif", ClipRequest(sizes=(SIZE,), fps=10, max_frames=99, start=0.0))
    assert [number_of(frame) for frame in clip.frames] == [0, 1, 2, 3]


def test_heic_is_read_where_its_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the extra, which is not installed here."""
    path = tmp_path / "a.heic"
    path.write_bytes(b"\x00\x00\x00\x1cftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with refused(DataError, file="a.heic") as caught:
        clip_of(path)
    assert "HEIC" in caught.value.what and "lumos_pl[heif]" in str(caught.value.fix)

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = PICTURE.size, "RGB"

        def load(self) -> Any:
            self.im = PICTURE.im
            return None

    def register() -> None:
        Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    clip = clip_of(path)
    assert clip.is_image and number_of(clip.frames[0]) == 5


# -- what is not read ------------------------------------------------------------------------------

NOT_READ: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a.mpg": ("MPEG program", lambda path: write_numbered(path, codec="mpeg2video", rate=25, container="mpeg")),
    "a.wmv": ("WMV", lambda path: write_numbered(path, codec="wmv2", container="asf")),
    "a.mxf": ("MXF", lambda path: write_numbered(path, codec="mpeg2video", rate=25, pixels="yuv422p")),
    "a.ivf": ("IVF", lambda path: write_numbered(path, codec="libsvtav1", container="ivf")),
    "a.nut": ("NUT", lambda path: write_numbered(path, container="nut")),
    "a.264": ("H.264", lambda path: write_numbered(path, container="h264")),
    "a.tiff": ("TIFF", lambda path: PICTURE.save(path)),
    "CMYK.tiff": ("TIFF", lambda path: PICTURE.convert("CMYK").save(path)),
    "a.ico": ("ICO", lambda path: PICTURE.save(path, sizes=[(16, 16), (32, 32)])),
    "a.ppm": ("PPM", lambda path: PICTURE.save(path)),
    "a.avi": ("codec", lambda path: write_numbered(path, 4, codec="wmv2")),
    "a.mov": ("codec", lambda path: write_numbered(path, 4, codec="jpeg2000")),
    "a.jp2": ("JPEG 2000", lambda path: PICTURE.save(path)),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_read_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    word, write = NOT_READ[name]
    write(tmp_path / name)
    with refused(DataError, file=name) as caught:
        clip_of(tmp_path / name)
    assert word in caught.value.what and caught.value.fix


def test_an_encrypted_video_is_not_damaged(tmp_path: Path) -> None:
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    path = write_numbered(tmp_path / "a.mp4", 12, container_options=options)
    with refused(DataError, file="a.mp4") as caught:
        clip_of(path, start=0.0)
    assert "encrypted" in caught.value.what


def test_a_lost_packet_of_mpeg_ts_is_seen_by_its_counter(tmp_path: Path) -> None:
    data = write_numbered(tmp_path / "a.ts", times_ms=UNEVEN).read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    with av.open(str(tmp_path / "a.ts")) as file:
        stream = file.streams.video[0].id
    of_video = [i for i, packet in enumerate(packets) if (packet[1] & 0x1F) << 8 | packet[2] == stream]
    begins = [i for i in of_video if packets[i][1] & 0x40]
    lost = range(begins[14], begins[16])  # two pictures, from end to end
    (tmp_path / "b.ts").write_bytes(b"".join(packet for i, packet in enumerate(packets) if i not in lost))
    with refused(DataError, file="b.ts"):
        clip_of(tmp_path / "b.ts")
