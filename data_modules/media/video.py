"""The frames of a video at given times: one fixed demuxer, one file, nothing taken on trust."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, islice
from statistics import median_low
from typing import IO, NoReturn, cast

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_modules.media.fit import MAX_PIXELS, UPRIGHT, DisplayMatrix, check_dimensions, fit
from data_modules.media.size_buckets import Size
from lumos_pl.errors import DataError

_DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "msmpeg4"),
    *("theora", "mjpeg", "prores", "dnxhd", "ffv1"),
)

_DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
"""FFmpeg refuses what is too large, and reports damage instead of hiding it."""

_RESYNCHRONISING = ("matroska", "mpegts", "ogg")
"""Containers without an index of every frame, whose demuxers pass over damage and go on behind it."""

_CONSTANT_RATE = ("mpegts", "ogg")
"""Containers whose frame durations can be relied on, so that a gap is a loss."""

_SYNC_BYTE = b"G"
"""The first of every packet of MPEG-TS."""

_ROUNDING = Fraction(1, 1000)
"""Seconds that a time stamp may be off: Matroska rounds to milliseconds, others less."""

_LONG_GAP, _LONGEST_GAP, _USUAL_TIMES = 5, 60, 10
"""Seconds that one frame may stay, though the others stay a tenth of that; and that it may stay at all.

A slide show of any pace up to the second is taken, and a recording of a screen on which nothing moves for a while.
"""

_FRAMES_AHEAD = 8
"""Frames behind a long gap that tell how long frames usually stay."""

_FASTEST = 1000
"""Frames per second that a file may have; cameras have less, and what they slow down is stored slowly."""

_REPLACED_TIMES = ("time scale", "timescale", "scale/rate", "stts")
"""In FFmpeg's words where it puts numbers of its own in the place of a header's impossible ones."""

_SOUND_PACKET = Fraction(1, 4)
"""Seconds that the last packet of another stream may last; its decoder, which would know, is not opened."""


def read_video(
    file: IO[bytes], demuxer: str, *, start: float | None, fps: int, max_frames: int, sizes: Sequence[Size]
) -> NDArray[np.uint8]:
    """What is on screen at `start` + i / fps, i < max_frames, up to the video's end.

    On screen is the last frame whose time stamp has come, so variable frame rates keep their pace;
    times count from the first frame, and the last frame stays for its duration.

    Args:
        file: the open video; nothing else is ever opened.
        demuxer: FFmpeg's name of the container.
        start: in seconds; None: the window of max_frames / fps seconds in the middle.
        sizes: all frames fill the one that is nearest to the first frame's aspect.
    Returns:
        [N, H, W, 3], 1 <= N <= max_frames.
    Raises:
        DataError: nothing at `start`, a damaged or missing frame on the way, or fewer frames than the
            header promises. FFmpeg's own exceptions pass through.
    """
    with _logged() as said:
        with _open(file, demuxer) as container:
            source = _Source(container, demuxer)
            begin = source.middle(Fraction(max_frames, fps)) if start is None else Fraction(start)
            times = [begin + Fraction(i, fps) for i in range(max_frames)]
            pictures = _sought(source, times, sizes)
        if pictures is None:
            file.seek(0)
            with _open(file, demuxer) as container:
                pictures = _pictures(_Source(container, demuxer), times, sizes)
    if replaced := [text for _, _, text in said if any(words in text for words in _REPLACED_TIMES)]:
        raise DataError("times that cannot be", got=replaced[0])
    errors = [text for level, part, text in said if level <= av.logging.ERROR and part.startswith(demuxer)]
    if demuxer in _RESYNCHRONISING and errors:
        raise DataError("damaged container", got=errors[0])
    if demuxer == "mpegts" and len(pictures) < max_frames:
        _check_packets(file)
    return np.stack(pictures)


def _sought(source: _Source, times: Sequence[Fraction], sizes: Sequence[Size]) -> list[NDArray[np.uint8]] | None:
    """`_pictures` without the frames before; None: maybe with them, as MPEG-TS is found by guessing, amid a group."""
    try:
        return _pictures(source, times, sizes) if source.go_to(times[0]) else None
    except (av.FFmpegError, DataError):
        if not times[0]:
            raise
        return None


def _pictures(source: _Source, times: Sequence[Fraction], sizes: Sequence[Size]) -> list[NDArray[np.uint8]]:
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


def _check_packets(file: IO[bytes]) -> None:
    """Raise DataError unless a MPEG-TS file is packets from end to end: FFmpeg passes over what is none, in silence."""
    file.seek(0)
    head = file.read(5)
    length, first = (188, 0) if head[:1] == _SYNC_BYTE else (192, 4)
    file.seek(0)
    number = 0
    while block := file.read(length * 4096):
        marks = block[first::length]
        if len(block) % length or marks.strip(_SYNC_BYTE):
            good = len(marks) - len(marks.lstrip(_SYNC_BYTE))
            raise DataError("damaged container", got=f"something else than packet {number + good}")
        number += len(marks)


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
        "codec_whitelist": ",".join(_DECODERS),
        **_DECODER_OPTIONS,
    }
    return av.open(file, "r", format=demuxer, options=options, io_open=refuse)


def _video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            break
    else:
        kinds = ", ".join(stream.type for stream in container.streams)
        raise DataError("no video in the file", got=f"streams: {kinds or 'none'}", expected="a video stream")
    context = stream.codec_context
    if context is None or context.name not in _DECODERS:
        raise DataError("video codec that is not read", got=context and context.name, expected=", ".join(_DECODERS))
    check_dimensions(context.width, context.height)
    context.thread_count = 1  # several files are decoded side by side instead
    context.options = dict(_DECODER_OPTIONS)
    return stream


class _Source:
    """The video stream of an open container.

    Arguments and results are seconds since its first frame; inside, all is in ticks of the stream's clock.
    """

    def __init__(self, container: InputContainer, demuxer: str) -> None:
        self._container, self._stream = container, _video_stream(container)
        self._demuxer = demuxer
        self._tick = self._stream.time_base or Fraction(1, av.time_base)
        self._rounding = _ROUNDING / self._tick
        self._reorder_depth = self._stream.codec_context.reorder_depth
        self._duration = max(self._stream.duration or 0, 0) * self._tick
        self._file_end = max(container.duration or 0, 0) * Fraction(1, av.time_base)
        self._measured = False
        self._origin = self._end = self._frame_length = 0
        self._read_until: dict[int, int] = {}  # by stream, in ticks of its own
        self._lengths: deque[int] = deque(maxlen=2 * _FRAMES_AHEAD)  # from each of the last frames to the next
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise DataError("no frames in the video")
        self._origin = _stamp(first)
        self._frames = chain([first], frames)

    # -- times -------------------------------------------------------------------------------------

    def _ticks(self, time: Fraction) -> int:
        """The last tick that has come at `time`."""
        return self._origin + math.floor((time + _ROUNDING) / self._tick)

    @property
    def end(self) -> Fraction:
        """When the last frame so far ends."""
        return (self._end - self._origin) * self._tick

    def middle(self, length: Fraction) -> Fraction:
        """The start of the window of `length` seconds in the middle, or 0 where the video is no longer."""
        if self._duration:
            total = self._duration
        elif self._file_end and len(self._container.streams) == 1:
            total = self._file_end - self._origin * self._tick
        else:
            total = self._measure()
        return max(Fraction(0), (total - length) / 2)

    def _measure(self) -> Fraction:
        """The video's length by all its packets, where no header tells it."""
        self._measured = True
        end = self._origin
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
        return (end - self._origin) * self._tick

    # -- frames ------------------------------------------------------------------------------------

    def go_to(self, time: Fraction) -> bool:
        """Continue with a frame no later than `time`; False where the container cannot find one."""
        target = self._ticks(time)
        if time <= _ROUNDING and not self._measured:
            return True
        try:
            self._container.seek(target, stream=self._stream)
        except (av.FFmpegError, OverflowError):
            return False
        self._stream.codec_context.reorder_depth = self._reorder_depth  # which PyAV's seek forgets, and frames are lost
        frames = self._decode()
        head = next(frames, None)
        if head is None or _stamp(head) > target:
            return False
        self._frames = chain([head], frames)
        return True

    def on_screen(self, times: Sequence[Fraction]) -> Iterator[VideoFrame]:
        """The frame shown at each of the rising times, up to the end of the last frame."""
        waiting = deque(self._ticks(time) for time in times)
        shown: VideoFrame | None = None
        while waiting:
            frame = next(self._frames, None)
            until = self._end if frame is None else _stamp(frame)
            if shown is not None:
                if len(waiting) > 1 and waiting[1] < until:  # once is a picture, several times stand for its length
                    self._check_gap(_stamp(shown), until)
                while waiting and waiting[0] < until:
                    waiting.popleft()
                    yield shown
            if frame is None:
                return
            shown = frame

    def _check_gap(self, since: int, until: int) -> None:
        """Raise DataError where a frame stays for so long that the times must be wrong, or frames are missing."""
        gap, header = (until - since) * self._tick, self._duration - _ROUNDING
        several = header > 0 and self._stream.frames > 2  # by the header
        if gap <= _LONG_GAP and not (several and gap >= header):
            return
        ahead: list[VideoFrame] = []
        with suppress(DataError, av.FFmpegError):  # what is damaged there is not asked for
            ahead.extend(islice(self._frames, _FRAMES_AHEAD))
        self._frames = chain(ahead, self._frames)
        usual = median_low([*self._lengths, until - since]) * self._tick
        as_long_as_all = several and usual >= header  # FFmpeg's own number, where the file's are zeros
        if gap > _LONGEST_GAP or (gap > _LONG_GAP and gap > _USUAL_TIMES * usual) or as_long_as_all:
            raise DataError(
                "one frame stays too long: times that cannot be, or frames are missing",
                where=f"at {float((since - self._origin) * self._tick):.3f} s",
                got=f"{float(gap):.3f} s",
                expected=f"at most {_LONGEST_GAP} s, and {_LONG_GAP} s or {_USUAL_TIMES} times the usual",
            )

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames from here on, in the order of their times."""
        previous: int | None = None
        self._lengths.clear()
        for packet in self._container.demux():
            self._note(packet)
            if packet.stream.index != self._stream.index:  # not packet.stream_index: wrong for PyAV's last, empty ones
                continue
            for frame in self._stream.decode(packet):
                stamp = _stamp(frame)
                if frame.is_corrupt:
                    raise DataError("damaged frame", where=f"at {float(stamp * self._tick):.3f} s")
                if previous is not None:
                    self._check_order(previous, stamp)
                    self._lengths.append(stamp - previous)
                    if len(self._lengths) == self._lengths.maxlen:
                        self._check_rate()
                self._frame_length = self._length(frame, previous)
                previous, self._end = stamp, stamp + self._frame_length
                yield frame
        self._check_rate()

    def _note(self, packet: Packet[Stream]) -> None:
        index, stamp = packet.stream.index, packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            self._read_until[index] = max(self._read_until.get(index, stamp), stamp + (packet.duration or 0))

    def _check_order(self, previous: int, stamp: int) -> None:
        if stamp <= previous:
            what, last = "time stamps that do not rise", previous
        elif self._demuxer in _CONSTANT_RATE and stamp > self._end + self._frame_length / 2 + self._rounding:
            what, last = "frames are missing", self._end
        else:
            return
        raise DataError(what, got=f"{float(stamp * self._tick):.3f} s after {float(last * self._tick):.3f} s")

    def _check_rate(self) -> None:
        """Also where all frames have the same time."""
        n, seconds = len(self._lengths), sum(self._lengths) * self._tick
        if n > 2 and n > _FASTEST * (seconds + _ROUNDING):
            got, expected = f"{n + 1} frames in {float(seconds):.6f} s", f"at most {_FASTEST} a second"
            raise DataError("times that cannot be", got=got, expected=expected)

    def _length(self, frame: VideoFrame, previous: int | None) -> int:
        """How long a frame stays: what it says, else as long as the one before, else by the frame rate."""
        if frame.duration > 0:
            return frame.duration
        if previous is not None and _stamp(frame) > previous:
            return _stamp(frame) - previous
        rate = self._stream.average_rate
        return math.ceil(1 / rate / self._tick) if rate else 1

    def check_whole(self) -> None:
        """After the last frame: did the video last as long as its header says?

        Matroska has no length of the video alone; there, the file's is where its longest stream ends. An
        MPEG-TS file has no header, see `_check_packets`.
        """
        if self._duration <= _ROUNDING and self._stream.duration and self._stream.frames > 1:
            raise DataError(
                "times that cannot be", got=f"{self._stream.frames} frames in {float(self._duration):.6f} s"
            )
        if self._duration:
            start = self._origin if self._stream.start_time is None else self._stream.start_time
            found, promised = (self._end - start) * self._tick, self._duration
        else:
            streams = self._container.streams
            ends = [end * (streams[i].time_base or Fraction(0)) for i, end in self._read_until.items()]
            found = max(self._end * self._tick, *ends) + (_SOUND_PACKET if len(streams) > 1 else 0)
            promised = self._file_end
        if promised > found + self._frame_length * self._tick / 2 + 2 * _ROUNDING:
            got, expected = f"{float(found):.3f} s", f"{float(promised):.3f} s, as its header says"
            raise DataError("the video is cut off", got=got, expected=expected)

    # -- pictures ----------------------------------------------------------------------------------

    def fit(self, frame: VideoFrame, sizes: Sequence[Size]) -> NDArray[np.uint8]:
        check_dimensions(frame.width, frame.height)
        picture = cast("NDArray[np.uint8]", frame.to_ndarray(format="rgb24", threads=1))
        aspect = float(self._stream.sample_aspect_ratio or 1)
        return fit(picture, sizes, pixel_aspect=aspect, display_matrix=_display_matrix(frame))


def _stamp(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise DataError("frame without a time stamp")
    return frame.pts


def _display_matrix(frame: VideoFrame) -> DisplayMatrix:
    """The rotation and flip that the container asks for."""
    side_data = cast("Mapping[SideDataType, SideData]", frame.side_data)  # wrongly typed in PyAV
    if SideDataType.DISPLAYMATRIX not in side_data:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), np.int32)[:5].tolist()
    return a, b, c, d
