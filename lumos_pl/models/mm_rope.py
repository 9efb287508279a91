"""MM-RoPE: rotary embedding over (t, h, w) that leaves text RoPE intact (arXiv:2507.08801).

Every token has three positions (`SequenceSpans.positions`); each frequency rotates by one of them.

    frequency  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 | 16 ...      (high to low)
    mm         t t t t h h w w h h  w  w  h  h  w  w |  t ...      distributed: every 16 span the axes
   3d_block   t t t t h h h h h h  w  w  w  w  w  w               (16 in all) one run per axis

`mm` also scales the positions by the tokenizer's strides, so that a latent step counts the pixels
and frames it stands for. A text-like token has t = h = w, so it gets plain RoPE whatever the axes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError

Axes = Callable[[Tensor], Tensor]
Strides = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class RopeKind:
    """One way to share the frequencies among the axes.

    Args:
        axes: maps the indices of the frequencies, high to low, [n], to the axis (0 t, 1 h, 2 w) each rotates by, [n].
        scale: maps the tokenizer's strides to what one latent step counts in t, h, w; None: content tokens stand at
            their index, like text.
    """

    axes: Axes
    scale: Callable[[Strides], Strides] | None


def _distributed(index: Tensor) -> Tensor:
    """In every 16 frequencies four for t, then two for h and two for w in turn."""
    return (index % 16 >= 4) * (1 + index // 2 % 2)


def _blocks(index: Tensor) -> Tensor:
    """One run per axis, t:h:w = 2:3:3."""
    eighth = len(index) // 8
    return (index >= eighth * 2).long() + (index >= eighth * 5)


def _pixels(strides: Strides) -> Strides:
    """A latent step counts the pixels and frames that it stands for."""
    return strides


def _cells(strides: Strides) -> Strides:
    """A latent step counts as one."""
    return (1, 1, 1)


ROPE_KINDS: dict[str, RopeKind] = {
    "mm": RopeKind(axes=_distributed, scale=_pixels),
    "1d": RopeKind(axes=torch.zeros_like, scale=None),
    "3d_block": RopeKind(axes=_blocks, scale=_cells),
    "3d_block_scaled": RopeKind(axes=_blocks, scale=_pixels),
    "3d_distributed": RopeKind(axes=_distributed, scale=_cells),
}


def position_scale(kind: str, strides: Strides) -> Strides | None:
    """What one latent step counts in t, h, w; None if content tokens stand at their index."""
    scale = ROPE_KINDS[kind].scale
    return None if scale is None else scale(strides)


def frequency_axes(kind: str, n_frequencies: int, device: torch.device | None = None) -> Tensor:
    """The axis (0 t, 1 h, 2 w) that each frequency rotates by, [n_frequencies].

    Computed on the device: copying a table to a GPU would block the host.
    """
    return ROPE_KINDS[kind].axes(torch.arange(n_frequencies, device=device))


def check_rope(kind: str, n_frequencies: int, strides: Strides) -> None:
    """Raise ConfigError if this is not a `RopeKind`, or a custom one whose axes or scale are invalid."""
    own = ROPE_KINDS[kind]
    if not (isinstance(own, RopeKind) and callable(own.axes) and (own.scale is None or callable(own.scale))):
        got, expected = reprlib.repr(own), "a RopeKind of two functions, axes and scale"
        raise ConfigError("no RoPE kind", where=f"model.rope {kind}", got=got, expected=expected)
    with torch.device("cpu"):  # wherever the model is built
        axes, scale = frequency_axes(kind, n_frequencies), position_scale(kind, strides)
    is_index = isinstance(axes, Tensor) and axes.dtype == torch.int64 and axes.shape == (n_frequencies,)
    if not is_index or axes.min() < 0 or axes.max() > 2:
        got = " ".join(str(axes).split())[:200]
        expected = f"0, 1 or 2 for each, int64 [{n_frequencies}]"
        raise ConfigError("no axes", where=f"model.rope {kind}", got=got, expected=expected)
    steps = scale if isinstance(scale, tuple | list) else ()
    if scale is not None and not (len(steps) == 3 and all(isinstance(step, int) and step > 0 for step in steps)):
        raise ConfigError("no scale", where=f"model.rope {kind}", got=scale, expected="three whole numbers above 0")


def rope_cos_sin(positions: Tensor, *, kind: str, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's rotation, fp32.

    Args:
        positions: (t, h, w) of each token, [S, 3].
    Returns:
        two tensors [S, head_dim], each with the frequencies theta^(-2i / head_dim) twice (half-rotation).
    """
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / theta ** (even / head_dim)
    axes = frequency_axes(kind, head_dim // 2, positions.device)
    angles = positions.float().index_select(1, axes) * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of every head.

    Args:
        x: [S, n_heads, head_dim].
        cos, sin: [S, head_dim].
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
