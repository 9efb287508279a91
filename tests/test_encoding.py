from __future__ import annotations

import base64
import io
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lumos_pl.machinery.encoding import encode_gif, encode_mp4
from tests.shape_world.media import decode


def test_the_same_frames_make_the_same_file() -> None:
    """Whatever stands in the memory that the encoder gets: with mbtree, x264 makes several of these."""
    draws = np.random.default_rng(0)
    coarse = draws.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
    files, kept = set(), []
    for _ in range(40):
        kept.append(np.full(draws.integers(1, 200_000), draws.integers(256), np.uint8))
        files.add(encode_mp4(frames, 8))
        if len(kept) > 30:
            del kept[draws.integers(30)]
    assert len(files) == 1
    assert decode(files.pop()).shape == frames.shape


COLORS = np.array([(255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 60)], np.uint8)


def striped(number: int) -> NDArray[np.uint8]:
    """Columns of the colours, moved on by `number` places, [64, 96, 3]."""
    return np.roll(COLORS, number, axis=0).repeat(16, axis=0)[None].repeat(64, axis=0)


def test_a_file_says_what_its_colors_are_and_has_its_index_at_the_front() -> None:
    data = encode_mp4(np.stack([striped(i) for i in range(6)]), 8)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        assert (frame.color_primaries, frame.color_trc) == (1, 1)
    assert np.abs(decode(data)[0, 32, 8::16].astype(int) - COLORS).max() < 6


def test_a_browser_shows_the_frame_and_the_colors(browser: Any) -> None:
    data = base64.b64encode(encode_mp4(np.stack([striped(i) for i in range(6)]), 8)).decode()
    look = """async ([data, time]) => {
        const video = document.createElement("video");
        video.muted = true;
        video.src = "data:video/mp4;base64," + data;
        await new Promise((done, failed) => { video.onloadeddata = done; video.onerror = failed; });
        const seeked = new Promise(done => { video.onseeked = done; });
        video.currentTime = time;
        await seeked;
        const canvas = document.createElement("canvas");
        canvas.width = video.videoWidth; canvas.height = video.videoHeight;
        const drawn = canvas.getContext("2d");
        for (let left = 100; left && !drawn.getImageData(0, 0, 1, 1).data[3]; left--) {  // nothing was there to draw
            await new Promise(requestAnimationFrame);
            drawn.drawImage(video, 0, 0);
        }
        return Array.from({length: 6}, (_, i) => Array.from(drawn.getImageData(16 * i + 8, 32, 1, 1).data).slice(0, 3));
    }"""
    page = browser.new_page()
    for number in (0, 3):
        shown = page.evaluate(look, [data, (number + 0.5) / 8])
        assert np.abs(np.array(shown) - striped(number)[32, 8::16]).max() < 16
    page.close()


@pytest.mark.parametrize("fps", [8, 12, 24, 30, 50])
def test_a_gif_is_as_long_as_its_clip(fps: int) -> None:
    pictures = [Image.new("L", (8, 8), shade) for shade in range(0, 250, 5)]
    with Image.open(io.BytesIO(encode_gif(pictures, 1000 / fps))) as gif:
        stay = []
        for place in range(len(pictures)):
            gif.seek(place)
            stay.append(gif.info["duration"])
    assert sum(stay) == pytest.approx(1000 * len(pictures) / fps, abs=10) and max(stay) - min(stay) <= 10
