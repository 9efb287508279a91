"""Frames of a video or image file, cut and resized; in this process (`reader` decodes in a child)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from data_modules.media.fit import fit
from data_modules.media.images import Picture
from data_modules.media.kinds import IMAGE, kind_of
from data_modules.media.size_buckets import Size
from data_modules.media.video import read_video
from data_modules.media.video_stream import Hdr
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
        hdr: `map` brings videos of high dynamic range to a screen's, `refuse` refuses them.
    """

    sizes: tuple[Size, ...]
    fps: int
    max_frames: int
    start: float | None = None
    min_frames: int = 1
    hdr: Hdr = "map"

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

    Images: see `images`; those that move (GIF, WebP, PNG, AVIF) are videos.
    Videos: see `video.read_video`. A video shorter than the window gives what it has.

    Raises:
        DataError: a file that cannot be read, is of another kind, damaged, cut off, absurdly large,
            or gives fewer than `min_frames` frames.
        MemoryError: as it is, for who set the limit.
    """
    try:
        with open_regular(path, at_most=None) as file:
            kind = kind_of(file)
            clip = _read_picture(file, request) if kind == IMAGE else _read_video(file, kind, request)
        if not clip.is_image and len(clip.frames) < request.min_frames:
            got, expected = f"{len(clip.frames)} frames at {request.fps} fps", f"at least {request.min_frames}"
            raise DataError("the video is too short", got=got, expected=expected)
        return clip
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


def _read_video(file: IO[bytes], demuxer: str, request: ClipRequest) -> DecodedClip:
    frames = read_video(
        file,
        demuxer,
        start=request.start,
        fps=request.fps,
        max_frames=request.max_frames,
        sizes=request.sizes,
        hdr=request.hdr,
    )
    return DecodedClip(frames=frames, fps=request.fps, is_image=False)


def _read_picture(file: IO[bytes], request: ClipRequest) -> DecodedClip:
    with Picture(file) as picture:
        if not picture.is_moving:
            return DecodedClip(frames=fit(picture.pixels(), request.sizes)[None], fps=1, is_image=True)
        sizes, seen = request.sizes, dict[int, NDArray[np.uint8]]()
        shown = picture.on_screen(start=request.start, fps=request.fps, max_frames=request.max_frames)
        for frame in dict.fromkeys(shown):
            seen[frame] = fit(picture.pixels(frame), sizes)
            height, width, _ = seen[frame].shape
            sizes = ((width, height),)  # all of the first one's
        return DecodedClip(frames=np.stack([seen[frame] for frame in shown]), fps=request.fps, is_image=False)
