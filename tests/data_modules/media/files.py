"""Small media files whose frames are told apart by their brightness."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_modules.media.decode import ClipRequest, DecodedClip

CONTAINERS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mpeg4", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "ts": ("libx264", "yuv420p"),
}

MILLISECOND = Fraction(1, 1000)


def shade(index: int) -> int:
    """The brightness of frame `index`: 8 steps apart, all over again after 25 frames."""
    return 20 + 8 * (index % 25)


def flat(index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), shade(index), np.uint8)


def quadrants(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Top left red, top right green, bottom left blue, bottom right white."""
    width, height = size
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[: height // 2, : width // 2] = 255, 0, 0
    picture[: height // 2, width // 2 :] = 0, 255, 0
    picture[height // 2 :, : width // 2] = 0, 0, 255
    return picture


def write_video(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    rate: int = 12,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    container_format: str | None = None,
    pixel_format: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """The pictures at `rate`, or at `times_ms`, of which one more than pictures tells the end."""
    height, width, _ = pictures[0].shape
    tick = Fraction(1, rate) if times_ms is None else MILLISECOND
    times = range(len(pictures) + 1) if times_ms is None else times_ms
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = tick
        stream.codec_context.flags |= CodecFlags.frame_duration
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base, frame.duration = times[i], tick, times[i + 1] - times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_flat(path: Path, n: int, *, size: tuple[int, int] = (64, 64), **options: object) -> Path:
    return write_video(path, [flat(i, size) for i in range(n)], **options)  # type: ignore[arg-type]


def request(**changes: object) -> ClipRequest:
    values: dict[str, object] = {"sizes": ((64, 64),), "fps": 12, "max_frames": 24, "start": 0.0, **changes}
    return ClipRequest(**values)  # type: ignore[arg-type]


def shown(clip: DecodedClip) -> list[int]:
    """Which source frame (below 25) each frame shows."""
    brightness = clip.frames.astype(np.float64).mean((1, 2, 3))
    indices = np.rint((brightness - 20) / 8)
    assert np.abs(20 + 8 * indices - brightness).max() < 3, brightness
    return [int(i) for i in indices]
