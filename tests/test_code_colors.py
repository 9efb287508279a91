from __future__ import annotations

import numpy as np
import pytest

from lumos_pl.tokenizers.code_colors import code_colors


@pytest.mark.parametrize("codebook_size", [64_000, 1000, 240, 500])
def test_every_code_has_a_colour_of_its_own(codebook_size: int) -> None:
    colors = code_colors(np.arange(codebook_size).reshape(4, -1).astype(np.uint16), codebook_size)
    assert colors.dtype == np.uint8 and colors.shape == (4, codebook_size // 4, 3)
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == codebook_size


def test_digits_of_an_fsq_code_become_channels() -> None:
    assert code_colors(np.array([0, 63_999, 7, 7 * 8, 7 * 64, 4 * 512]), 64_000).tolist() == [
        [0, 0, 0],
        [255, 255, 255],
        [170, 0, 0],
        [0, 170, 0],
        [0, 0, 170],
        [85, 0, 0],
    ]
