"""False colours for codes, to look at predictions without a decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Levels of finite scalar quantization (FSQ) by codebook size; the first digit of a code varies fastest.
_FSQ_LEVELS = {
    64_000: (8, 8, 8, 5, 5, 5),  # Cosmos DV4x8x8
    1000: (8, 5, 5, 5),  # the tokenizer that comes with the project
    240: (8, 6, 5),
}
# The R3 sequence: steps of 1/g, 1/g^2, 1/g^3 with g^4 = g + 1 spread any number of points evenly over a cube.
_R3_STEPS = 1.2207440846057596 ** -np.arange(1.0, 4.0)


def code_colors(codes: NDArray[np.integer], codebook_size: int) -> NDArray[np.uint8]:
    """One colour per code, the same in every picture.

    Under FSQ a code is a number whose digits quantize one channel each. Digits 0, 1, 2 become red,
    green and blue, and digits 3, 4, 5, if there are any, finer shades of them, so that codes that
    decode alike look alike. Codes of an unknown codebook get well-separated colours without meaning.

    Args:
        codes: integers below `codebook_size`, any shape [...].
    Returns:
        uint8 [..., 3].
    """
    wide = np.asarray(codes, dtype=np.int64)
    levels = _FSQ_LEVELS.get(codebook_size)
    if levels is None:
        unit = wide[..., None] * _R3_STEPS % 1.0
    else:
        places = np.cumprod((1, *levels[:-1]))
        steps = np.array(levels)
        digits = wide[..., None] // places % steps / (steps - 1)  # [..., digits], each from 0 to 1
        coarse, fine = digits[..., :3], digits[..., 3:]
        unit = (2 * coarse + fine) / 3 if fine.size else coarse
    return np.round(unit * 255).astype(np.uint8)
