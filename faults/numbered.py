"""Pictures that tell their number and have known colours, and files of them in every kind of container and codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_modules.media.decode import ClipRequest, DecodedClip, decode_media

SIZE = 128, 96
COLORS = (
    *((255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0)),
    *((0, 0, 255), (255, 255, 0), (30, 30, 30), (200, 120, 60)),
)
_MATRIX_601, _MATRIX_709 = 5, 1


def numbered(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Above, the number's eight bits, the lowest first; below, the colours."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    for i, column in enumerate(_columns(width)):
        picture[: height // 2, column] = 235 if number >> i & 1 else 16
        picture[height // 2 :, column] = COLORS[i]
    return picture


def number_of(picture: NDArray[np.uint8]) -> int:
    height, width, _ = picture.shape
    inside = [picture[height // 8 : height * 3 // 8, column].mean() for column in _columns(width, margin=True)]
    return sum(int(brightness > 128) << i for i, brightness in enumerate(inside))


def colors_of(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean of each colour's middle, [8, 3]."""
    height, width, _ = picture.shape
    middles = [picture[height * 5 // 8 : height * 7 // 8, column] for column in _columns(width, margin=True)]
    return np.array([middle.mean((0, 1)) for middle in middles])


def _columns(width: int, *, margin: bool = False) -> list[slice]:
    each = width // 8
    cut = each // 4 if margin else 0
    return [slice(i * each + cut, (i + 1) * each - cut) for i in range(8)]


def clip_of(
    path: Path, *, size: tuple[int, int] = SIZE, fps: int = 12, start: float | None = 1.0, n: int = 12
) -> DecodedClip:
    return decode_media(path, ClipRequest(sizes=(size,), fps=fps, max_frames=n, start=start))


def write_numbered(
    path: Path,
    n: int = 48,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int | Fraction = 12,
    options: dict[str, str] | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = SIZE,
    times_ms: Sequence[int] | None = None,
    first: int = 0,
    matrix: int | None = None,
    full_range: bool = False,
    b_frames: int | None = None,
    gop: int | None = None,
    prepare: Callable[[VideoStream], object] | None = None,
    hdr: int | None = None,
    noise: int | None = None,
) -> Path:
    """`n` numbered pictures at `rate`, or at `times_ms`.

    Args:
        first: ticks before the first picture.
        matrix: FFmpeg's number of the matrix, which the file then tells; None: BT.601 without a word.
        hdr: FFmpeg's number of the transfer function of a high dynamic range, which the file tells with BT.2020.
        noise: seed of a little noise, so that every frame has many bytes of its own.
    """
    tick = 1 / Fraction(rate) if times_ms is None else Fraction(1, 1000)
    with av.open(str(path), "w", format=container, options=container_options or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.time_base = tick
        if gop is not None:
            context.gop_size = gop
        if b_frames is not None:
            context.max_b_frames = b_frames
        if matrix is not None:
            context.colorspace, context.color_range = matrix, 2 if full_range else 1
        if hdr is not None:
            context.color_primaries, context.color_trc = 9, hdr
        if prepare is not None:
            prepare(stream)
        draw = None if noise is None else np.random.default_rng(noise)
        for i in range(n):
            picture = numbered(i, size)
            if draw is not None:
                picture = np.clip(picture + draw.integers(-5, 6, picture.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if matrix is not None:
                frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=2 if full_range else 1)
                frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
            if hdr is not None:
                frame.color_primaries, frame.color_trc = 9, hdr
            frame.pts = (i if times_ms is None else times_ms[i]) + first
            frame.time_base = tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
