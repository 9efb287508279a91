"""The frames of a video at given times: one fixed demuxer, one file, nothing taken on trust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, NoReturn

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from data_modules.media.size_buckets import Size
from data_modules.media.transport import check_packets
from data_modules.media.video_stream import DECODER_OPTIONS, DECODERS, Hdr, VideoSource
from lumos_pl.errors import DataError

_RESYNCHRONISING = ("matroska", "mpegts", "ogg", "flv")
"""Containers without an index of every frame, whose demuxers pass over damage and go on behind it."""

_REPLACED_TIMES = ("time scale", "timescale", "scale/rate", "stts")
"""In FFmpeg's words where it puts numbers of its own in the place of a header's impossible ones."""

_OF_COVERS = "timescale not set"
"""What it says also of each cover picture, which has no times, as if it were the first stream."""


def read_video(
    file: IO[bytes],
    demuxer: str,
    *,
    start: float | None,
    fps: int,
    max_frames: int,
    sizes: Sequence[Size],
    hdr: Hdr = "map",
) -> NDArray[np.uint8]:
    """What is on screen at `start` + i / fps, i < max_frames, up to the video's end.

    On screen is the last frame whose time stamp has come, so variable frame rates keep their pace;
    times count from the first frame, and the last frame stays for its duration.

    Args:
        file: the open video; nothing else is ever opened.
        demuxer: FFmpeg's name of the container.
        start: in seconds; None: the window of max_frames / fps seconds in the middle.
        sizes: all frames fill the one that is nearest to the first frame's aspect.
        hdr: whether high dynamic range is brought to a screen's, see `colour`, or refused.
    Returns:
        [N, H, W, 3], 1 <= N <= max_frames.
    Raises:
        DataError: nothing at `start`, a damaged or missing frame on the way, or fewer frames than the
            header promises. FFmpeg's own exceptions pass through.
    """
    with _logged() as said:
        with _open(file, demuxer) as container:
            source = VideoSource(file, container, demuxer, hdr=hdr)
            told = covers = source.n_covers
            begin = source.middle(Fraction(max_frames, fps)) if start is None else Fraction(start)
            times = [begin + Fraction(i, fps) for i in range(max_frames)]
            pictures = _sought(source, times, sizes)
        if pictures is None:
            file.seek(0)
            with _open(file, demuxer) as container:
                pictures = _pictures(VideoSource(file, container, demuxer, hdr=hdr), times, sizes)
            told += covers
    replaced = [text for _, _, text in said if any(words in text for words in _REPLACED_TIMES)]
    if len(replaced) > len([text for text in replaced if _OF_COVERS in text][:told]):
        raise DataError("times that cannot be", got=replaced[0])
    errors = [text for level, part, text in said if level <= av.logging.ERROR and part.startswith(demuxer)]
    if demuxer in _RESYNCHRONISING and errors:
        raise DataError("damaged container", got=errors[0])
    if demuxer == "mpegts" and len(pictures) < max_frames:
        check_packets(file)
    return np.stack(pictures)


def _sought(source: VideoSource, times: Sequence[Fraction], sizes: Sequence[Size]) -> list[NDArray[np.uint8]] | None:
    """`_pictures` without the frames before; None: maybe with them, as MPEG-TS is found by guessing, amid a group."""
    try:
        return _pictures(source, times, sizes) if source.go_to(times[0]) else None
    except (av.FFmpegError, DataError):
        if not times[0]:
            raise
        return None


def _pictures(source: VideoSource, times: Sequence[Fraction], sizes: Sequence[Size]) -> list[NDArray[np.uint8]]:
    """What is on screen at each of the times, all of one size; at least one."""
    pictures: list[NDArray[np.uint8]] = []
    shown: VideoFrame | None = None
    for frame in source.on_screen(times):
        if frame is not shown:
            picture = source.fit(frame, sizes)
            sizes, shown = [(picture.shape[1], picture.shape[0])], frame
        pictures.append(picture)
    if len(pictures) < len(times):
        source.check_whole()
    if not pictures:
        got, expected = f"a video of {float(source.end):.3f} s", f"more than {float(times[0]):.3f} s"
        raise DataError("the video ends before the clip starts", got=got, expected=expected)
    return pictures


@contextmanager
def _logged() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg logs as warnings and errors from here on: level, part and text."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)  # else what the file before was told of is not told of this one
    try:
        with av.logging.Capture() as said:
            yield said
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)


def _open(file: IO[bytes], demuxer: str) -> InputContainer:
    def refuse(url: str, flags: int, options: object) -> NoReturn:
        raise PermissionError("the video refers to another file")

    options = {
        "format_whitelist": demuxer,
        "protocol_whitelist": "none",
        "codec_whitelist": ",".join(DECODERS),
        **DECODER_OPTIONS,
    }
    return av.open(file, "r", format=demuxer, options=options, io_open=refuse)
