"""Positions around MM-RoPE's own, for the study `rope_range`; named as one's own are: `model.rope=positions.half`."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from lumos_pl.models.mm_rope import ROPE_KINDS, RopeKind, Strides

MM = ROPE_KINDS["mm"].axes


def _scaled(t: Fraction | int, h: Fraction | int, w: Fraction | int) -> RopeKind:
    """MM-RoPE that counts so many times the pixels and frames of a latent step."""

    def scale(strides: Strides) -> Strides:
        time, rows, cols = (int(step * by) for step, by in zip(strides, (t, h, w), strict=True))
        return time, rows, cols

    return RopeKind(axes=MM, scale=scale)


def _mostly_time(index: Tensor) -> Tensor:
    """Two of four for t, one for h, one for w."""
    return (index % 4 - 1).clamp(min=0)


_HALF = Fraction(1, 2)
half, double = _scaled(_HALF, _HALF, _HALF), _scaled(2, 2, 2)
mostly_time = RopeKind(axes=_mostly_time, scale=ROPE_KINDS["mm"].scale)
# For a model of `mm` at its test: so many more frames, or cells of a side, stand where those that it knows stood.
half_time, quarter_time, half_space = _scaled(_HALF, 1, 1), _scaled(_HALF / 2, 1, 1), _scaled(1, _HALF, _HALF)
