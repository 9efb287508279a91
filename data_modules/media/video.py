"""The frames of a video at given times: one fixed demuxer, one file, nothing taken on trust."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, NoReturn

import av
import av.logging
from av.container import InputContainer

from data_modules.media.request import ClipRequest, DecodedClip, Several
from data_modules.media.video_stream import DECODER_OPTIONS, DECODERS, VideoSource
from data_modules.media.windows import Plan
from lumos_pl.errors import DataError

_RESYNCHRONISING = ("matroska", "mpegts", "ogg", "flv")
"""Containers without an index of every frame, whose demuxers pass over damage and go on behind it."""

_REPLACED_TIMES = ("time scale", "timescale", "scale/rate", "stts")
"""In FFmpeg's words where it puts numbers of its own in the place of a header's impossible ones."""

_OF_COVERS = "timescale not set"
"""What it says also of each cover picture, which has no times, as if it were the first stream."""


def video_clips(
    file: IO[bytes], demuxer: str, request: ClipRequest, several: Several
) -> Generator[DecodedClip, None, int]:
    """The clips of a video, each with what is on screen at its start + i / fps, i < max_frames, up to the video's end.

    On screen is the last frame whose time stamp has come, so variable frame rates keep their pace;
    times count from the first frame, and the last frame stays for its duration.

    Args:
        file: the open video; nothing else is ever opened.
        demuxer: FFmpeg's name of the container.
        request: all frames of a clip fill the size that is nearest to its first frame's aspect.
    Returns:
        how many pieces were left out because they are shorter than a clip.
    Raises:
        DataError: nothing at a start, a damaged or missing frame on the way, or fewer frames than the
            header promises. FFmpeg's own exceptions pass through.
    """
    with _logged() as said:
        plan = None
        for seeking in (True, False):  # MPEG-TS is sought by guessing, and may be found amid a group
            said.clear()  # what was said of a way that was not gone to its end is said again, if the file is damaged
            with _open(file, demuxer) as container:
                source = VideoSource(file, container, demuxer, hdr=request.hdr, seeking=seeking)
                log = _Log(said, demuxer, source.n_covers)
                try:
                    plan = plan or Plan.of(source, request, several)
                    for clip in plan.clips(source):
                        log.check()
                        yield replace(clip, facts=source.facts()) if several.facts else clip
                    break
                except (av.FFmpegError, DataError):
                    if not source.has_sought:
                        raise
            file.seek(0)
        log.check()
        assert plan is not None
        return plan.rests


class _Log:
    """What FFmpeg says of a file, and whether that is damage that it passes over."""

    def __init__(self, said: list[tuple[int, str, str]], demuxer: str, n_covers: int) -> None:
        self._said, self._demuxer, self._n_covers = said, demuxer, n_covers

    def check(self) -> None:
        replaced = [said for said in self._said if any(words in said[2] for words in _REPLACED_TIMES)]
        if len(replaced) > len([said for said in replaced if _OF_COVERS in said[2]][: self._n_covers]):
            raise DataError("times that cannot be", got=replaced[0][2])
        errors = [
            text for level, part, text in self._said if level <= av.logging.ERROR and part.startswith(self._demuxer)
        ]
        if self._demuxer in _RESYNCHRONISING and errors:
            raise DataError("damaged container", got=errors[0])
        self._said[:] = replaced  # of hours of video the rest is not kept


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
