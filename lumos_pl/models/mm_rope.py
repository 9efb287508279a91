"""MM-RoPE: rotary embedding over (t, h, w) that leaves text RoPE intact (arXiv:2507.08801).

Every token has three positions (`SequenceSpans.positions`); each frequency rotates by one of them.

    frequency  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 | 16 ...      (high to low)
    mm         t t t t h h w w h h  w  w  h  h  w  w |  t ...      distributed: every 16 span the axes
    3d_block   t t t t h h h h h h  w  w  w  w  w  w               (16 in all) one run per axis

`mm` also scales the positions by the tokenizer's strides, so that a latent step counts the pixels
and frames it stands for. A text-like token has t = h = w: whatever the axes, it gets plain RoPE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lumos_pl.models.config import RopeKind


def position_scale(kind: RopeKind, strides: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """What one latent step counts in t, h, w; None where content tokens stand at their index."""
    match kind:
        case "1d":
            return None
        case "mm" | "3d_block_scaled":
            return strides
        case "3d_block" | "3d_distributed":
            return (1, 1, 1)


def frequency_axes(kind: RopeKind, n_frequencies: int, device: torch.device | None = None) -> Tensor:
    """The axis (0 t, 1 h, 2 w) that each frequency rotates by, t:h:w = 2:3:3, [n_frequencies].

    Reckoned on the device: a table's copy to a GPU would make the host wait.
    """
    index = torch.arange(n_frequencies, device=device)
    match kind:
        case "mm" | "3d_distributed":
            return (index % 16 >= 4) * (1 + index // 2 % 2)  # after four for t, two for h and two for w in turn
        case "3d_block" | "3d_block_scaled":
            return (index >= n_frequencies // 8 * 2).long() + (index >= n_frequencies // 8 * 5)
        case "1d":
            return torch.zeros_like(index)


def rope_cos_sin(positions: Tensor, *, kind: RopeKind, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's rotation, fp32.

    Args:
        positions: (t, h, w) of each token, [S, 3].
    Returns:
        two tensors [S, head_dim], each the frequencies theta^(-2i / head_dim) twice (half-rotation).
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
