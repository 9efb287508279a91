"""Frames as files: H.264, GIF and PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Without mbtree, which on small pictures makes other bytes of the same frames from one call to the next (x264 165).
H264 = {"crf": "10", "preset": "veryfast", "tune": "animation", "x264-params": "mbtree=0"}


def encode_mp4(frames: NDArray[np.uint8], fps: int) -> bytes:
    """An H.264 file of RGB frames [N, H, W, 3], the same bytes every time; H and W even."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=H264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()


def encode_gif(pictures: Sequence[Image.Image], ms_per_picture: int) -> bytes:
    """An endless animation of pictures of one size."""
    encoded = io.BytesIO()
    pictures[0].save(
        encoded, format="GIF", save_all=True, append_images=list(pictures[1:]), duration=ms_per_picture, loop=0
    )
    return encoded.getvalue()
