from __future__ import annotations

import numpy as np

from lumos_pl.machinery.encoding import encode_mp4
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
