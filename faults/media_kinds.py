"""Every kind of media that is read, made here: videos and pictures whose frames are known by construction.

One list serves the tests, which see that each is shown as it should be, and the campaign that damages them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from faults.numbered import SIZE, numbered, write_numbered

os.environ.setdefault("SVT_LOG", "1")  # an encoder that else tells its settings each time

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
OPEN_GOP_265 = {"x265-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:log-level=none"}
QUIET = {"x265-params": "log-level=none"}
UNEVEN = [0, 50, 90, 200, 400, 420, 500, 700, 900, 1000, *(1000 + 83 * i + 7 * (i % 3) for i in range(1, 39))]

VIDEOS: dict[str, dict[str, Any]] = {
    "open GOP in mp4": {"name": "a.mp4", "options": OPEN_GOP},
    "open GOP in mkv": {"name": "a.mkv", "options": OPEN_GOP},
    "open GOP in mov": {"name": "a.mov", "options": OPEN_GOP},
    "open GOP in ts": {"name": "a.ts", "options": OPEN_GOP},
    "open GOP in avi": {"name": "a.avi", "options": OPEN_GOP},
    "open GOP in flv": {"name": "a.flv", "options": OPEN_GOP},
    "open GOP of HEVC in mp4": {"name": "a.mp4", "codec": "libx265", "options": OPEN_GOP_265},
    "open GOP of HEVC in mkv": {"name": "a.mkv", "codec": "libx265", "options": OPEN_GOP_265},
    "open GOP of HEVC in ts": {"name": "a.ts", "codec": "libx265", "options": OPEN_GOP_265},
    "intra refresh": {"name": "a.mp4", "options": {"x264-params": "intra-refresh=1:keyint=24:bframes=0"}},
    "B-frames without times of their own": {"name": "a.avi", "options": {"bf": "3"}},
    "B-frames of MPEG-4 in avi": {"name": "a.avi", "codec": "mpeg4", "b_frames": 2},
    "B-frames of MPEG-4 in mkv": {"name": "a.mkv", "codec": "mpeg4", "b_frames": 2},
    "B-frames without an edit list": {
        "name": "a.mp4",
        "container_options": {"use_editlist": "0"},
        "options": {"bf": "3"},
    },
    "B-frames with negative offsets": {"name": "a.mp4", "container_options": {"movflags": "+negative_cts_offsets"}},
    "index at the front": {"name": "a.mp4", "container_options": {"movflags": "+faststart"}},
    "fragmented mp4": {"name": "a.mp4", "container_options": {"movflags": "+frag_keyframe+empty_moov"}, "gop": 12},
    "packets of 192 bytes": {
        "name": "a.m2ts",
        "container": "mpegts",
        "container_options": {"mpegts_m2ts_mode": "1"},
    },
    "H.264 in 3gp": {"name": "a.3gp"},
    "MPEG-2 in ts": {"name": "a.ts", "codec": "mpeg2video", "rate": 25, "n": 60, "b_frames": 2},
    "MPEG-4 in ts": {"name": "a.ts", "codec": "mpeg4", "gop": 24},
    "VP8": {"name": "a.webm", "codec": "libvpx"},
    "VP9 with hidden frames": {"name": "a.webm", "codec": "libvpx-vp9", "options": {"auto-alt-ref": "1"}},
    "VP9 in mp4": {"name": "a.mp4", "codec": "libvpx-vp9"},
    "AV1 in mp4": {"name": "a.mp4", "codec": "libsvtav1"},
    "AV1 in mkv": {"name": "a.mkv", "codec": "libsvtav1"},
    "HEVC": {"name": "a.mp4", "codec": "libx265", "options": QUIET},
    "HEVC of 10 bits": {"name": "a.mp4", "codec": "libx265", "pixels": "yuv420p10le", "options": QUIET},
    "HEVC of 12 bits": {"name": "a.mp4", "codec": "libx265", "pixels": "yuv420p12le", "options": QUIET},
    "H.264 of 10 bits": {"name": "a.mp4", "pixels": "yuv420p10le"},
    "4:2:2": {"name": "a.mp4", "pixels": "yuv422p"},
    "4:4:4 without loss": {"name": "a.mp4", "pixels": "yuv444p", "options": {"qp": "0"}},
    "RGB": {"name": "a.mp4", "codec": "libx264rgb", "pixels": "rgb24"},
    "full range by its format": {"name": "a.mp4", "pixels": "yuvj420p"},
    "BT.709": {"name": "a.mp4", "matrix": 1},
    "BT.709, full range": {"name": "a.mp4", "matrix": 1, "full_range": True},
    "BT.601 of PAL": {"name": "a.mp4", "matrix": 5},
    "BT.601 of NTSC": {"name": "a.mp4", "matrix": 6},
    "BT.601, full range": {"name": "a.mp4", "matrix": 6, "full_range": True},
    "BT.2020's matrix": {"name": "a.mp4", "matrix": 9},
    "ProRes": {"name": "a.mov", "codec": "prores_ks", "pixels": "yuv422p10le"},
    "ProRes with alpha": {
        "name": "a.mov",
        "codec": "prores_ks",
        "pixels": "yuva444p10le",
        "options": {"profile": "4444"},
    },
    "Motion JPEG in avi": {"name": "a.avi", "codec": "mjpeg", "pixels": "yuvj420p"},
    "Motion JPEG in mov": {"name": "a.mov", "codec": "mjpeg", "pixels": "yuvj420p"},
    "FFV1": {"name": "a.mkv", "codec": "ffv1"},
    "FFV1 of RGB": {"name": "a.mkv", "codec": "ffv1", "pixels": "bgr0"},
    "HuffYUV": {"name": "a.avi", "codec": "huffyuv", "pixels": "yuv422p"},
    "Ut Video": {"name": "a.avi", "codec": "utvideo"},
    "PNG in mov": {"name": "a.mov", "codec": "png", "pixels": "rgb24"},
    "QuickTime Animation": {"name": "a.mov", "codec": "qtrle", "pixels": "rgb24"},
    "Sorenson in flv": {"name": "a.flv", "codec": "flv"},
    "begins late in mp4": {"name": "a.mp4", "first": 24},
    "begins late in mkv": {"name": "a.mkv", "first": 24},
    "begins late in ts": {"name": "a.ts", "first": 24},
    "pixels twice as wide": {
        "name": "a.mp4",
        "size": (64, 96),
        "prepare": lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(2, 1)),
    },
    "uneven times in mp4": {"name": "a.mp4", "times_ms": UNEVEN},
    "uneven times in mkv": {"name": "a.mkv", "times_ms": UNEVEN},
    "uneven times in ts": {"name": "a.ts", "times_ms": UNEVEN},
    "uneven times in mov": {"name": "a.mov", "times_ms": UNEVEN},
    "uneven times in webm": {"name": "a.webm", "codec": "libvpx-vp9", "times_ms": UNEVEN},
    "called fields, whole pictures": {"name": "a.mp4", "options": {"x264-params": "tff=1"}},
    "4:1:1": {"name": "a.mkv", "codec": "ffv1", "pixels": "yuv411p"},
    "4:1:0": {"name": "a.mkv", "codec": "ffv1", "pixels": "yuv410p"},
    "RGB of 10 bits in planes": {"name": "a.mkv", "codec": "ffv1", "pixels": "gbrp10le"},
    "RGB of 16 bits": {"name": "a.mov", "codec": "png", "pixels": "rgb48be"},
    "HEVC in RGB": {"name": "a.mp4", "codec": "libx265", "pixels": "gbrp", "options": QUIET},
    "VP9 in RGB": {"name": "a.webm", "codec": "libvpx-vp9", "pixels": "gbrp"},
    "Ut Video in RGB": {"name": "a.avi", "codec": "utvideo", "pixels": "gbrp"},
    "QuickTime Animation of 15 bits": {"name": "a.mov", "codec": "qtrle", "pixels": "rgb555be"},
    "ProRes 4444 XQ": {
        "name": "a.mov",
        "codec": "prores_ks",
        "pixels": "yuv444p10le",
        "options": {"profile": "4444xq"},
    },
    "DNxHR": {
        "name": "a.mov",
        "codec": "dnxhd",
        "pixels": "yuv422p",
        "size": (256, 128),
        "matrix": 1,
        "options": {"profile": "dnxhr_hq"},
    },
    "Motion JPEG of limited range": {"name": "a.avi", "codec": "mjpeg", "options": {"strict": "-2"}},
    "MPEG-4 by quarter pixels": {"name": "a.avi", "codec": "mpeg4", "b_frames": 2, "options": {"flags": "+qpel"}},
    "H.263 in 3gp": {"name": "a.3gp", "codec": "h263"},
    "MS MPEG-4": {"name": "a.avi", "codec": "msmpeg4"},
    "MPEG-1": {"name": "a.mkv", "codec": "mpeg1video", "rate": 25, "n": 60},
    "odd sides": {"name": "a.webm", "codec": "libvpx-vp9", "size": (125, 93)},
    "fragments as of HLS": {
        "name": "a.mp4",
        "container_options": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"},
        "gop": 12,
    },
    "fragments as of DASH": {
        "name": "a.mp4",
        "container_options": {"movflags": "+cmaf+frag_keyframe+empty_moov"},
        "gop": 6,
    },
    "a fragment a frame": {"name": "a.mp4", "container_options": {"movflags": "+frag_every_frame+empty_moov"}},
    "120 frames a second": {"name": "a.mp4", "rate": 120, "n": 250},
    "one frame a second": {"name": "a.mp4", "rate": 1, "n": 4},
    "begins before zero in ts": {"name": "a.ts", "first": -24},
    "turned by a little": {"name": "a.mp4", "prepare": lambda stream: stream.set_display_rotation(10.0, False, False)},
    "720 lines without a word": {"name": "a.mp4", "size": (1280, 720), "n": 26, "matrix": 1, "untold": True},
}


def tell_no_matrix(path: Path) -> None:
    """Write the file again without a word of its colours: the pictures are those of BT.709 all the same."""
    with av.open(str(path)) as source:
        raw = [frame.reformat(format="yuv420p") for frame in source.decode(video=0)]
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = raw[0].width, raw[0].height, "yuv420p"
        for i, frame in enumerate(raw):
            frame.colorspace, frame.color_range, frame.pts, frame.time_base = 2, 0, i, Fraction(1, 12)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with av.open(str(path)) as source:
        assert next(source.decode(video=0)).colorspace == 2


def remux(source: Path, path: Path, *, shift: int = 0, cover: bool = False) -> Path:
    """The same packets, `shift` ticks later, with a cover picture before them."""
    with av.open(str(source)) as read, av.open(str(path), "w") as file:
        old = read.streams.video[0]
        if cover:
            picture: Any = file.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        new = file.add_stream_from_template(old)
        if cover:
            image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            image.pts, image.time_base = 0, Fraction(1, 1)
            file.mux(picture.encode(image))
            file.mux(picture.encode(None))
        for packet in read.demux(old):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = new
            file.mux(packet)
    return path


def words(kind: str, n: int = 2_000_000) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    text = "the quick brown fox " * (n // 20)
    if kind == "iTXt":
        info.add_itxt("workflow", text, zip=True)
    else:
        info.add_text("workflow", text, zip=kind == "zTXt")
    return info


def png_of_16_bits(path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in numbered(5).astype(">u2") * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def profile_with_red_and_green_swapped() -> bytes:
    """An ICC profile of sRGB whose entries for red and green point at each other's values."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for i in range(struct.unpack(">I", data[128:132])[0]):
        entry = 132 + 12 * i
        places[bytes(data[entry : entry + 4])] = slice(entry + 4, entry + 12)
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    data[red], data[green] = data[green], data[red]
    return bytes(data)


def save_png(picture: Image.Image, path: Path, **parts: bytes) -> None:
    """A PNG with more parts, by their names, behind its header."""
    picture.save(path)
    data = path.read_bytes()
    for name, content in parts.items():
        part = name.encode() + content
        data = data[:33] + struct.pack(">I", len(content)) + part + struct.pack(">I", zlib.crc32(part)) + data[33:]
    path.write_bytes(data)


def write_padded(path: Path) -> None:
    PICTURE.save(path, quality=95)
    path.write_bytes(path.read_bytes() + bytes(5000))


PICTURE = Image.fromarray(numbered(5))
SWAPPED = Image.fromarray(np.ascontiguousarray(numbered(5)[..., [1, 0, 2]]))
GREY = PICTURE.convert("L")
PICTURES: dict[str, Callable[[Path], object]] = {
    "a.png": lambda path: PICTURE.save(path),
    "palette.png": lambda path: PICTURE.quantize(16).save(path),
    "16 bits.png": png_of_16_bits,
    "2 MB of tEXt.png": lambda path: PICTURE.save(path, pnginfo=words("tEXt")),
    "2 MB of zTXt.png": lambda path: PICTURE.save(path, pnginfo=words("zTXt")),
    "2 MB of iTXt.png": lambda path: PICTURE.save(path, pnginfo=words("iTXt")),
    "100 MB of zTXt.png": lambda path: PICTURE.save(path, pnginfo=words("zTXt", 100_000_000)),
    "a.jpg": lambda path: PICTURE.save(path, quality=95),
    "progressive.jpg": lambda path: PICTURE.save(path, quality=95, progressive=True),
    "CMYK.jpg": lambda path: PICTURE.convert("CMYK").save(path, quality=95),
    "two pictures.jpg": lambda path: PICTURE.save(path, "MPO", save_all=True, append_images=[GREY], quality=95),
    "profile.jpg": lambda path: SWAPPED.save(path, quality=95, icc_profile=profile_with_red_and_green_swapped()),
    "profile.png": lambda path: SWAPPED.save(path, icc_profile=profile_with_red_and_green_swapped()),
    "no profile.png": lambda path: PICTURE.save(path, icc_profile=b"nonsense"),
    "a.webp": lambda path: PICTURE.save(path, lossless=True),
    "alpha.webp": lambda path: PICTURE.convert("RGBA").save(path, lossless=True),
    "interlaced.png": lambda path: PICTURE.save(path, interlace=1),
    "gamma.png": lambda path: save_png(PICTURE, path, gAMA=struct.pack(">I", 45455)),
    "4 to 1.jpg": lambda path: PICTURE.save(path, quality=95, subsampling="4:1:1"),
    "padded.jpg": write_padded,
    "palette.bmp": lambda path: PICTURE.quantize(16).save(path),
    "a.avif": lambda path: PICTURE.save(path, quality=95, subsampling="4:4:4"),
    "a.bmp": lambda path: PICTURE.save(path),
    "a.gif": lambda path: PICTURE.save(path),
    "wrong name.mp4": lambda path: PICTURE.save(path, "PNG"),
}


# -- all of them -----------------------------------------------------------------------------------


def write_moving(path: Path) -> None:
    first, *rest = (Image.fromarray(numbered(i)) for i in range(24))
    first.save(path, save_all=True, append_images=rest, duration=83)


def write_derived(path: Path, **how: Any) -> None:
    """The packets of another file, see `remux`."""
    source = write_numbered(path.with_name(f"source of {path.name}"), gop=8)
    remux(source, path, **how)
    source.unlink()


def _write_video(path: Path, how: dict[str, Any]) -> None:
    how = dict(how)
    untold = how.pop("untold", False)
    write_numbered(path, **how)
    if untold:
        tell_no_matrix(path)


def _turned(*how: Any) -> dict[str, Any]:
    return {"name": "a.mp4", "prepare": lambda stream: stream.set_display_rotation(*how)}


_TO_DAMAGE: dict[str, dict[str, Any]] = {  # whose colours or turns a test of their own compares
    "PQ": {"name": "a.mp4", "codec": "libx265", "pixels": "yuv420p10le", "options": QUIET, "matrix": 9, "hdr": 16},
    "HLG": {"name": "a.mkv", "codec": "libx265", "pixels": "yuv420p10le", "options": QUIET, "matrix": 9, "hdr": 18},
    "turned by 90 degrees": _turned(90.0, False, False),
    "mirrored": _turned(0.0, True, False),
    "grey": {"name": "a.mp4", "pixels": "gray"},
    "two fields": {
        "name": "a.ts",
        "codec": "mpeg2video",
        "rate": 25,
        "n": 50,
        "options": {"flags": "+ildct+ilme"},
    },
}
_OTHERS: dict[str, Callable[[Path], object]] = {
    "moving.gif": write_moving,
    "moving.webp": write_moving,
    "moving.png": write_moving,
    "moving.avif": write_moving,
    "cut by an edit list.mp4": partial(write_derived, shift=-12 * 1024),
    "with a cover.mp4": partial(write_derived, cover=True),
}


def all_kinds(noise: int | None = None) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """By name, how a file of each kind ends, and what writes it.

    Args:
        noise: seed of noise in the pictures of videos: each frame then has many bytes of its own.
    """
    kinds: dict[str, tuple[str, Callable[[Path], object]]] = {}
    for kind, how in (VIDEOS | _TO_DAMAGE).items():
        video = {"noise": noise, **how}
        kinds[kind] = Path(video.pop("name")).suffix, partial(_write_video, how=video)
    for name, write in (PICTURES | _OTHERS).items():
        kinds[name] = Path(name).suffix, write
    return kinds
