"""Frames as files: H.264, GIF and PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

# Without mbtree, which on small pictures makes other bytes of the same frames from one call to the next (x264 165).
H264 = {"crf": "10", "preset": "veryfast", "tune": "animation", "x264-params": "mbtree=0"}
INDEX_BYTES, INDEX_BYTES_A_FRAME = 4096, 64  # more than the index of a file of one video takes


def encode_mp4(frames: NDArray[np.uint8], fps: int, pix_fmt: str = "yuv420p") -> bytes:
    """An H.264 file of sRGB frames [N, H, W, 3], the same bytes every time; H and W even.

    Every player shows `yuv420p`; `yuv444p` keeps the colour of each pixel. The file says what its colours are, BT.709
    in limited range: players guess otherwise, by the size for one.
    """
    buffer = io.BytesIO()
    # The index stands at the front, in space kept for it: a browser shows the first frame before it has the last one.
    index = INDEX_BYTES + INDEX_BYTES_A_FRAME * len(frames)
    with av.open(buffer, "w", format="mp4", options={"moov_size": str(index)}) as container:
        stream = container.add_stream("libx264", rate=fps, options=H264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on every machine
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(
                stream.encode(
                    frame.reformat(
                        format=pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
                    )
                )
            )
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()


def encode_gif(pictures: Sequence[Image.Image], ms_per_picture: float) -> bytes:
    """An endless animation of pictures of one size, as long as they are together.

    A GIF counts in hundredths of a second: what one picture is too short, the next one is longer. None stays for less
    than two, which browsers take for ten.
    """
    ends = [round(place * max(ms_per_picture, 20) / 10) for place in range(len(pictures) + 1)]
    durations = [10 * (end - begin) for begin, end in pairwise(ends)]
    encoded = io.BytesIO()
    pictures[0].save(encoded, format="GIF", save_all=True, append_images=list(pictures[1:]), duration=durations, loop=0)
    return encoded.getvalue()
