"""The video stream of an open container: its frames by their times, as they are to be seen."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, islice
from statistics import median_low
from typing import IO, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data_modules.media.colour import ToldColours, check_readable, hdr_kind, to_rgb
from data_modules.media.deinterlace import Deinterlacer
from data_modules.media.fit import MAX_PIXELS, UPRIGHT, DisplayMatrix, check_dimensions, fit
from data_modules.media.fragments import check_fragments
from data_modules.media.repeats import repeats_at_end
from data_modules.media.request import Facts, Hdr
from data_modules.media.size_buckets import Size
from data_modules.media.transport import check_packets
from lumos_pl.errors import DataError

DECODERS = (
    *("h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "msmpeg4"),
    *("theora", "mjpeg", "prores", "dnxhd", "dvvideo", "flv"),
    *("ffv1", "huffyuv", "ffvhuff", "utvideo", "qtrle", "png"),
)

DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
"""FFmpeg refuses what is too large, and reports damage instead of hiding it."""

_CONSTANT_RATE = ("ogg",)
"""Containers whose frame durations can be relied on, so that a gap is a loss; MPEG-TS counts its packets instead."""

ROUNDING = Fraction(1, 1000)
"""Seconds that a time stamp may be off: Matroska rounds to milliseconds, others less."""

_WITHOUT_TIMES = ("avi",)
"""Containers whose frames stand in the order of decoding, one a tick, without a time to be shown at."""

_MAKE_PICTURES_UP = ("mpeg4", "h263", "msmpeg4", "flv")
"""Decoders that show something for pictures that are not there, without a word."""

_LONG_GAP, _LONGEST_GAP, _USUAL_TIMES = 5, 60, 10
"""Seconds that one frame may stay, though the others stay a tenth of that; and that it may stay at all.

A slide show of any pace up to the second is taken, and a recording of a screen on which nothing moves for a while.
"""

_FRAMES_AHEAD = 8
"""Frames behind a long gap that tell how long frames usually stay."""

_FASTEST = 1000
"""Frames per second that a file may have; cameras have less, and what they slow down is stored slowly."""

_SOUND_PACKET = Fraction(1, 4)
"""Seconds that the last packet of another stream may last; its decoder, which would know, is not opened."""

_WORTH_SEEKING = 10
"""Seconds between two clips from which on the next is sought instead of decoding up to it."""


def _films(container: InputContainer) -> list[VideoStream]:
    """The video streams that are not cover pictures."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _video_stream(container: InputContainer) -> VideoStream:
    """The video stream that a player shows: the first of those that the file calls its default, or else of all."""
    films = _films(container)
    if not films:
        kinds = ", ".join(stream.type for stream in container.streams)
        raise DataError("no video in the file", got=f"streams: {kinds or 'none'}", expected="a video stream")
    stream = next((film for film in films if film.disposition & Disposition.default), films[0])
    context = stream.codec_context
    if context is None or context.name not in DECODERS:
        fix = "convert it: `ffmpeg -i FILE -c:v ffv1 FILE.mkv`"
        got = context and context.name
        raise DataError("video codec that is not read", got=got, expected=", ".join(DECODERS), fix=fix)
    if any(name.lower() == "alpha_mode" and value == "1" for name, value in stream.metadata.items()):
        # The decoder of FFmpeg's own passes over what is transparent, and shows the colours below it.
        decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name, context.name)
        fix = f"lay it on a ground: `ffmpeg -c:v {decoder} -i FILE -c:v ffv1 FILE.mkv`"
        raise DataError("a video that is transparent in places", got=f"{context.name} with alpha", fix=fix)
    check_dimensions(context.width, context.height)
    context.thread_count = 1  # several files are decoded side by side instead
    context.options = dict(DECODER_OPTIONS)
    return stream


class VideoSource:
    """The video stream of an open container.

    Arguments and results are seconds since its first frame; inside, all is in ticks of the stream's clock.

    Args:
        seeking: frames may be sought; otherwise all are decoded from the first on.
    """

    def __init__(
        self, file: IO[bytes], container: InputContainer, demuxer: str, *, hdr: Hdr = "map", seeking: bool = True
    ) -> None:
        self._file, self._container, self._stream = file, container, _video_stream(container)
        self._demuxer, self._hdr = demuxer, hdr
        self._colours = ToldColours.of(self._stream.codec_context)  # before a decoder puts its own there
        self._tick = self._stream.time_base or Fraction(1, av.time_base)
        self._rounding = ROUNDING / self._tick
        self._reorder_depth = self._stream.codec_context.reorder_depth
        self._begin = self._stream.start_time  # as the header says: later FFmpeg puts a guess of its own there
        self._duration = max(self._stream.duration or 0, 0) * self._tick
        if demuxer in _WITHOUT_TIMES and self._stream.frames > 1:  # without an index, FFmpeg tells what is there
            self._duration = max(self._duration, self._stream.frames * self._tick)
        self._file_end = max(container.duration or 0, 0) * Fraction(1, av.time_base)
        # The index of Matroska may be of another stream's frames, by which FFmpeg's demuxer seeks without an end.
        self._seeking = seeking and not (demuxer == "matroska" and len(_films(container)) > 1)
        self.has_sought = False
        self._measured = self._packets_are_whole = False
        self._origin = self._end = self._frame_length = 0
        self._read_until: dict[int, int] = {}  # by stream, in ticks of its own
        self._lengths: deque[int] = deque(maxlen=2 * _FRAMES_AHEAD)  # from each of the last frames to the next
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise DataError("no frames in the video")
        self._origin = _stamp(first)
        self._frames: Iterator[VideoFrame] = chain([first], frames)

    @property
    def n_covers(self) -> int:
        """Pictures beside the video, as of an album."""
        return sum(bool(stream.disposition & Disposition.attached_pic) for stream in self._container.streams.video)

    def facts(self) -> Facts:
        """To be asked for last: the length may be found by reading on to the end."""
        context, rate = self._stream.codec_context, self._stream.average_rate
        seconds = float(self.length())
        return Facts(width=context.width, height=context.height, seconds=seconds, rate=float(rate or 0))

    # -- times -------------------------------------------------------------------------------------

    def _ticks(self, time: Fraction) -> int:
        """The last tick that has come at `time`."""
        return self._origin + math.floor((time + ROUNDING) / self._tick)

    @property
    def end(self) -> Fraction:
        """When the last frame so far ends."""
        return (self._end - self._origin) * self._tick

    def length(self) -> Fraction:
        """By the header of the video or of the file, or else by all packets."""
        if self._duration:
            return self._duration
        if self._file_end and len(self._container.streams) == 1:
            return self._file_end - self._origin * self._tick
        return self._measure()

    def _measure(self) -> Fraction:
        """The video's length by all its packets, where no header tells it."""
        self._measured = True
        end = self._origin
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
        return (end - self._origin) * self._tick

    # -- frames ------------------------------------------------------------------------------------

    def _go_to(self, target: int) -> None:
        """Continue with a frame no later than `target`; raises DataError where the container cannot find one."""
        self.has_sought = True
        try:
            self._container.seek(target, stream=self._stream)
        except OverflowError as error:
            raise DataError("a time that cannot be sought", got=target) from error
        self._stream.codec_context.reorder_depth = self._reorder_depth  # which PyAV's seek forgets, and frames are lost
        frames = self._decode()
        head = next(frames, None)
        if head is None or _stamp(head) > target:
            raise DataError("no frame where one was sought")
        self._frames = chain([head], frames)

    def on_screen(self, times: Iterable[Fraction]) -> Iterator[VideoFrame]:
        """The frame shown at each of the rising times, up to the end of the last frame.

        The first time is sought, and one that comes long after the one before.
        """
        coming = map(self._ticks, times)
        waiting = deque(islice(coming, 2))  # the next two
        shown: VideoFrame | None = None
        sought: int | None = None  # once: behind the end, or amid a long group of pictures, it stays far away
        if self._seeking and waiting and (self._measured or waiting[0] > self._ticks(Fraction(0))):
            self._go_to(sought := waiting[0])
        while waiting:
            is_far = shown is not None and (waiting[0] - self._end) * self._tick > _WORTH_SEEKING
            if self._seeking and is_far and waiting[0] != sought:
                self._go_to(sought := waiting[0])
                shown = None
            frame = next(self._frames, None)
            until = self._end if frame is None else _stamp(frame)
            if shown is not None:
                if len(waiting) > 1 and waiting[1] < until:  # once is a picture, several times stand for its length
                    self._check_gap(_stamp(shown), until)
                while waiting and waiting[0] < until:
                    waiting.popleft()
                    waiting.extend(islice(coming, 1))
                    yield shown
            if frame is None:
                return
            shown = frame

    def _check_gap(self, since: int, until: int) -> None:
        """Raise DataError where a frame stays for so long that the times must be wrong, or frames are missing."""
        gap, header = (until - since) * self._tick, self._duration - ROUNDING
        several = header > 0 and self._stream.frames > 2  # by the header
        if gap <= _LONG_GAP and not (several and gap >= header):
            return
        self._frames = self._read_ahead()
        usual = median_low([*self._lengths, until - since]) * self._tick
        as_long_as_all = several and usual >= header  # FFmpeg's own number, where the file's are zeros
        if gap > _LONGEST_GAP or (gap > _LONG_GAP and gap > _USUAL_TIMES * usual) or as_long_as_all:
            raise DataError(
                "one frame stays too long: times that cannot be, or frames are missing",
                where=f"at {float((since - self._origin) * self._tick):.3f} s",
                got=f"{float(gap):.3f} s",
                expected=f"at most {_LONGEST_GAP} s, and {_LONG_GAP} s or {_USUAL_TIMES} times the usual",
            )

    def _read_ahead(self) -> Iterator[VideoFrame]:
        """The frames from here on, of which some are read at once; damage among them is told where it is reached."""
        frames, ahead, damage = self._frames, list[VideoFrame](), list[DataError | av.FFmpegError]()
        try:
            ahead.extend(islice(frames, _FRAMES_AHEAD))
        except (DataError, av.FFmpegError) as error:
            damage.append(error)

        def from_here() -> Iterator[VideoFrame]:
            yield from ahead
            if damage:
                raise damage[0]
            yield from frames

        return from_here()

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames from here on, in the order of their times."""
        previous: int | None = None
        self._lengths.clear()
        for frame in self._whole_pictures():
            if self._demuxer in _WITHOUT_TIMES:  # what comes out is in order; its time is that of what went in last
                frame.pts = frame.dts if frame.dts is not None else self._end
            stamp = _stamp(frame)
            if previous is not None:
                self._check_order(previous, stamp)
                self._lengths.append(stamp - previous)
                if len(self._lengths) == self._lengths.maxlen:
                    self._check_rate()
            self._frame_length = self._length(frame, previous)
            previous, self._end = stamp, stamp + self._frame_length
            yield frame
        self._check_rate()
        if self._demuxer == "avi":
            self._end += repeats_at_end(self._file, self._stream.index)

    def _whole_pictures(self) -> Iterator[VideoFrame]:
        """What the decoder makes of the packets from here on, two fields as one picture."""
        deinterlacer = Deinterlacer(self._stream)
        for frame in self._decoded():
            if frame.is_corrupt:
                raise DataError("damaged frame", where=f"at {float(_stamp(frame) * self._tick):.3f} s")
            self._colours.complete(frame)
            yield from deinterlacer.push(frame)
        yield from deinterlacer.end()

    def _decoded(self) -> Iterator[VideoFrame]:
        """All frames from the first on that stands by itself: those before it are of others that are not there."""
        waits, begins_amid, n_keys = self._stream.codec_context.name in _MAKE_PICTURES_UP, False, 0
        for packet in self._packets():
            n_keys += packet.is_keyframe
            begins_amid = begins_amid or not n_keys
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError as error:
                if self._demuxer != "mpegts" or not begins_amid or n_keys > 1:  # others need not know their key frames
                    raise
                if not n_keys:
                    self._stream.codec_context.flush_buffers()
                    self._stream.codec_context.reorder_depth = self._reorder_depth
                    continue
                what, got = "the video begins amid an open group of pictures", error.log[-1] if error.log else error
                raise DataError(what, got=got, fix="`ffmpeg -i FILE -c:v ffv1 FILE.mkv`") from error
            for frame in frames:
                waits = waits and not frame.key_frame
                if not waits:
                    yield frame

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Those of the video from here on, and what the decoder needs after the last."""
        for packet in self._container.demux():
            self._note(packet)
            if packet.stream.index != self._stream.index:  # not packet.stream_index: wrong for PyAV's last, empty ones
                continue
            if packet.has_sidedata("encryption_info"):
                raise DataError("an encrypted video", fix="decrypt it first, with its key, or take one without a lock")
            yield cast("Packet[VideoStream]", packet)

    def _note(self, packet: Packet[Stream]) -> None:
        index, stamp = packet.stream.index, packet.dts if packet.pts is None else packet.pts
        if stamp is not None:
            self._read_until[index] = max(self._read_until.get(index, stamp), stamp + (packet.duration or 0))

    def _check_order(self, previous: int, stamp: int) -> None:
        if stamp <= previous:
            what, last = "time stamps that do not rise", previous
        elif stamp > self._end + self._frame_length / 2 + self._rounding and self._lacks_frames():
            what, last = "frames are missing", self._end
        else:
            return
        raise DataError(what, got=f"{float(stamp * self._tick):.3f} s after {float(last * self._tick):.3f} s")

    def _lacks_frames(self) -> bool:
        """Whether a gap between two frames is a loss; raises DataError where the container tells what was lost."""
        if self._demuxer == "mpegts" and not self._packets_are_whole:
            check_packets(self._file)
            self._packets_are_whole = True
        return self._demuxer in _CONSTANT_RATE

    def _check_rate(self) -> None:
        """Also where all frames have the same time."""
        n, seconds = len(self._lengths), sum(self._lengths) * self._tick
        if n > 2 and n > _FASTEST * (seconds + ROUNDING):
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
        MPEG-TS file has no header, but numbers its packets, and an MP4 of fragments has the header of each.
        """
        match self._demuxer:
            case "mpegts":
                check_packets(self._file)
            case "mov":
                check_fragments(self._file, some=not self._stream.frames)
        if self._duration <= ROUNDING and self._stream.duration and self._stream.frames > 1:
            raise DataError(
                "times that cannot be", got=f"{self._stream.frames} frames in {float(self._duration):.6f} s"
            )
        if self._duration:
            start = self._origin if self._begin is None else self._begin
            found, promised = (self._end - start) * self._tick, self._duration
        else:
            streams = self._container.streams
            ends = [end * (streams[i].time_base or Fraction(0)) for i, end in self._read_until.items()]
            found = max(self._end * self._tick, *ends) + (_SOUND_PACKET if len(streams) > 1 else 0)
            promised = self._file_end
        if promised > found + self._frame_length * self._tick / 2 + 2 * ROUNDING:
            got, expected = f"{float(found):.3f} s", f"{float(promised):.3f} s, as its header says"
            raise DataError("the video is cut off", got=got, expected=expected)

    # -- pictures ----------------------------------------------------------------------------------

    def fit(self, frame: VideoFrame, sizes: Sequence[Size]) -> NDArray[np.uint8]:
        check_dimensions(frame.width, frame.height)
        if self._hdr == "refuse" and (kind := hdr_kind(frame)) is not None:
            raise DataError("a video of high dynamic range", got=kind, expected="SDR, as asked for by --hdr refuse")
        check_readable(frame, self._stream.codec_context.codec_tag)
        picture = to_rgb(frame)
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
