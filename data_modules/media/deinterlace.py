"""Whole pictures of frames that hold two fields, taken at two times: FFmpeg's bwdif."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import av
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream


class Deinterlacer:
    """Passes frames on; from the first on that says it is interlaced, such frames as one picture each."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._graph: Graph | None = None

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """The frames that are ready: the filter holds one back, to look at what follows."""
        if self._graph is None:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph = self._build(frame)
        self._graph.push(frame)
        yield from self._ready()

    def end(self) -> Iterator[VideoFrame]:
        """What is left after the last one."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
            self._graph = None

    def _build(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=self._stream.time_base
        )
        graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
        graph.configure()
        return graph

    def _ready(self) -> Iterator[VideoFrame]:
        assert self._graph is not None
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frame = self._graph.pull()
                assert isinstance(frame, VideoFrame)
                frame.pts = None if frame.pts is None else frame.pts // 2  # the filter counts fields
                frame.duration //= 2
                yield frame
