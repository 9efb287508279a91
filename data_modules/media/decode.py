"""Frames of a video or image file, cut and resized; in this process (`reader` decodes in a child)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_modules.media.fit import check_dimensions, fit
from data_modules.media.size_buckets import Size
from data_modules.media.video import read_video
from lumos_pl.errors import ConfigError, DataError, LumosError
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.settings.ranges import at_least, check_ranges, optional

START = at_least(0, "seconds, 0 or more")


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """Which frames to read, and at which size.

    Args:
        sizes: the picture fills the one nearest to its aspect.
        fps: frames per second to resample to.
        max_frames: what comes after them is left out.
        start: where the clip begins, in seconds from the first frame; None: the middle window of
            max_frames / fps seconds.
        min_frames: a video that gives fewer is refused; an image is always one frame.
    """

    sizes: tuple[Size, ...]
    fps: int
    max_frames: int
    start: float | None = None
    min_frames: int = 1

    def __post_init__(self) -> None:
        check_ranges("", self, fps=at_least(1), max_frames=at_least(1), min_frames=at_least(1), start=optional(START))
        at_least(1).check("sizes", min((min(size) for size in self.sizes), default=0))
        if self.min_frames > self.max_frames:
            expected = f"at most max_frames = {self.max_frames}"
            raise ConfigError("min_frames too large", where="min_frames", got=self.min_frames, expected=expected)


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedClip:
    """RGB frames [N, H, W, 3] at `fps`; an image is one frame at 1 fps."""

    frames: NDArray[np.uint8]
    fps: int
    is_image: bool


def decode_media(path: Path, request: ClipRequest) -> DecodedClip:
    """The clip that is asked for, told by the file's content: its suffix does not matter.

    Images: PNG, JPEG, WebP and BMP, turned by their EXIF orientation, transparent parts black.
    Videos: see `video.read_video`. A video shorter than the window gives what it has.

    Raises:
        DataError: a file that cannot be read, is of another kind, damaged, cut off, absurdly large,
            animated (image), or gives fewer than `min_frames` frames.
        MemoryError: as it is, for who set the limit.
    """
    try:
        with open_regular(path, at_most=None) as file:
            kind = _kind(file)
            if kind == "image":
                return DecodedClip(frames=_read_image(file, request)[None], fps=1, is_image=True)
            frames = read_video(
                file, kind, start=request.start, fps=request.fps, max_frames=request.max_frames, sizes=request.sizes
            )
        if len(frames) < request.min_frames:
            got, expected = f"{len(frames)} frames at {request.fps} fps", f"at least {request.min_frames}"
            raise DataError("the video is too short", got=got, expected=expected)
        return DecodedClip(frames=frames, fps=request.fps, is_image=False)
    except MemoryError:
        raise
    except LumosError as error:
        raise DataError(**error.parts | {"file": path}) from error
    except av.FFmpegError as error:
        got = ": ".join(filter(None, (error.strerror, str(error.log[-1]) if error.log else None)))
        raise DataError("cannot be decoded", file=path, got=got) from error
    except UnidentifiedImageError as error:  # whose text names the stream
        raise DataError("cannot be decoded", file=path, got="nothing of an image behind its first bytes") from error
    except OSError as error:
        raise DataError("cannot be read", file=path, got=error.strerror or error) from error
    except Exception as error:  # decoders raise anything at damaged files
        raise DataError("cannot be decoded", file=path, got=f"{type(error).__name__}: {error}") from error


def _kind(file: IO[bytes]) -> str:
    """ "image", or the demuxer of the video, by the file's first bytes."""
    head = file.read(1024)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        raise DataError("kind of image that is not read", got="HEIF or AVIF", expected="PNG, JPEG, WebP or BMP")
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return "image"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"OggS"):
        return "ogg"
    for first, step in (0, 188), (4, 192):  # sync bytes of four packets
        if head[first : first + 3 * step + 1 : step] == b"GGGG":
            return "mpegts"
    raise DataError(
        "neither a video nor an image that is read",
        got=None if head else "an empty file",  # not its bytes: a link may lead to somebody else's
        expected="MP4/MOV, Matroska/WebM, AVI, MPEG-TS, Ogg; PNG, JPEG, WebP, BMP",
    )


def _read_image(file: IO[bytes], request: ClipRequest) -> NDArray[np.uint8]:
    with Image.open(file, formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
        check_dimensions(*image.size)
        if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
            raise DataError("animated image", got=f"{image.n_frames} frames", expected="a still image, or a video")  # type: ignore[attr-defined]
        picture = ImageOps.exif_transpose(image)
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    return fit(np.asarray(picture.convert("RGB")), request.sizes)
