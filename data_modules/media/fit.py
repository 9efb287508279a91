"""Fit a picture into one of the given sizes: turned upright, aspect kept, centre crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.media.size_buckets import Size, nearest_size
from lumos_pl.errors import DataError

MAX_SIDE, MAX_PIXELS = 16_384, 100_000_000
MAX_PIXEL_ASPECT = 16

DisplayMatrix = Sequence[int]
"""The 2 x 2 part (a, b, c, d) of FFmpeg's display matrix: x' = a x + c y, y' = b x + d y."""

UPRIGHT: DisplayMatrix = (1, 0, 0, 1)


def check_dimensions(width: int, height: int) -> None:
    """Refuse a picture that is empty or too large to be meant, before it is decoded."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise absurd_dimensions(f"{width}x{height} px")


def absurd_dimensions(got: str) -> DataError:
    expected = f"sides of 1 to {MAX_SIDE} px and at most {MAX_PIXELS // 10**6} Mpx"
    return DataError("absurd dimensions", got=got, expected=expected)


def fit(
    picture: NDArray[np.uint8],
    sizes: Sequence[Size],
    *,
    pixel_aspect: float = 1.0,
    display_matrix: DisplayMatrix = UPRIGHT,
) -> NDArray[np.uint8]:
    """The picture as it is to be seen, filling the size nearest to its aspect.

    One resampling from the crop's exact box (Pillow's Lanczos, whose support grows with the
    reduction, so that it averages over the whole area), in the picture's own orientation; what comes
    out is then turned. A matrix between quarter turns counts as the nearest of them.

    Args:
        picture: RGB, [H, W, 3].
        pixel_aspect: width of a pixel over its height.
    Returns:
        [H, W, 3] of one of the sizes.
    """
    if not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        expected = f"1/{MAX_PIXEL_ASPECT} to {MAX_PIXEL_ASPECT}"
        raise DataError("absurd pixel aspect ratio", got=pixel_aspect, expected=expected)
    a, b, c, d = display_matrix
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    width, height = picture.shape[1] * pixel_aspect, picture.shape[0]
    if turned:
        out_height, out_width = nearest_size((height, width), sizes)
    else:
        out_width, out_height = nearest_size((width, height), sizes)
    pixels = picture
    if (out_width, out_height, pixel_aspect) != (width, height, 1):
        scale = max(out_width / width, out_height / height)
        box = _centred_box(picture, out_width / scale / pixel_aspect, out_height / scale)
        resized = Image.fromarray(picture).resize(
            (out_width, out_height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0
        )
        pixels = np.asarray(resized)
    if turned:
        pixels = pixels.transpose(1, 0, 2)
    flip_x, flip_y = (c < 0, b < 0) if turned else (a < 0, d < 0)
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _centred_box(picture: NDArray[np.uint8], width: float, height: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; rounding errors do not take it over the edge."""
    left, top = max((picture.shape[1] - width) / 2, 0.0), max((picture.shape[0] - height) / 2, 0.0)
    return left, top, min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
