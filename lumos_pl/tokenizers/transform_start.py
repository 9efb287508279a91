"""First weights that make a tokenizer a transform coder already: cosines, the strongest of them as codes.

From random weights a tokenizer spends most of a short training on finding out what is known about pictures: that slow
cosines over time and space hold most of their content, and how strong each is. Here the cells' channels start as the
coefficients of the cosines that are strongest in photographs, each scaled to a spread of about one; the first of them
become the codes' channels. Residual blocks start as zero, so that decoding returns these few coefficients.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.trained import fold

Start = Literal["random", "transform"]  # what a training's first weights are

COLORS = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])  # brightness, and two hues
SPREADS = (1.0, 0.25, 0.15)  # of these in photographs
SLOW = 0.06  # share of the highest frequency; below it, slower cosines are no stronger
IN_TIME = 1.5  # changes over time are weaker than changes over space
BRIGHTEST = 0.4  # spread of the strongest coefficient: that of a constant picture in [-1, 1]
SHARP = 2.0  # from a coefficient of spread one to a level: sigmoid(2 x) uses all levels about equally
BACK = 1.3  # from a level in [-1, 1] to the coefficient
FAINT = 0.05  # spread of the random weights of channels that are not used by codes yet


@torch.no_grad()
def start_as_transform(tokenizer: FsqTokenizer, generator: torch.Generator) -> None:
    """Set the weights outside of the residual blocks, which are left as they are."""
    config = tokenizer.config
    cosines, spreads = _strongest(tokenizer.strides, config.width)
    patches = fold(cosines.movedim(1, 2).flatten(0, 1), tokenizer.patch)  # [width * t, pixels, 2, 2]
    kept = _patch_cosines(tokenizer.patch, config.patch_width)
    patches = torch.einsum("nphw,cp->nchw", patches, kept)
    rows = fold(patches, (2, 2)).flatten().reshape(len(cosines), -1)  # [width, t * 4 * patch_width]
    _set(tokenizer.patch_in, kept)
    _set(tokenizer.patch_out, kept.T)
    _set(tokenizer.cell_in, _filled(rows / spreads[:, None], config.width, 0))
    _set(tokenizer.cell_out, _filled(rows * spreads[:, None], config.width, 0).T)
    n = len(config.levels)
    for conv, scale in (tokenizer.code_in, SHARP), (tokenizer.code_out, BACK):
        weight = torch.randn(conv.weight.shape[:2], generator=generator) * FAINT
        weight[:n, :n] = torch.eye(n) * scale
        _set(conv, weight)


def _strongest(strides: tuple[int, int, int], count: int) -> tuple[Tensor, Tensor]:
    """The `count` strongest cosines of a cell (or all there are), [count, 3, t, h, w], and their spreads."""
    t, h, w = map(_cosines, strides)
    cosines = np.einsum("ac,it,jy,kx->aijkctyx", COLORS, t, h, w).reshape(-1, 3, *strides)
    slow = [np.arange(n) / n for n in strides]
    frequency = np.sqrt((IN_TIME * slow[0])[:, None, None] ** 2 + slow[1][:, None] ** 2 + slow[2] ** 2)
    strength = (np.array(SPREADS)[:, None] / (SLOW + frequency).reshape(-1)).reshape(-1)
    spreads = strength / strength.max() * BRIGHTEST * math.sqrt(3 * math.prod(strides))
    order = np.argsort(-spreads, kind="stable")[:count]
    return torch.from_numpy(cosines[order]).float(), torch.from_numpy(spreads[order]).float()


def _patch_cosines(patch: tuple[int, int], count: int) -> Tensor:
    """Orthonormal rows that keep as much of a patch's pixels as `count` channels can, [count, 3 * h * w]."""
    cosines, _ = _strongest((1, *patch), count)
    flat = fold(cosines[:, :, 0], patch).flatten(1)
    return _filled(flat, count, 0)


def _cosines(n: int) -> NDArray[np.float64]:
    """The orthonormal cosines over n places, slowest first, [n, n]."""
    rows = np.cos(np.pi * np.arange(n)[:, None] * (2 * np.arange(n) + 1) / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def _filled(weight: Tensor, count: int, dim: int) -> Tensor:
    """Pad with zeros up to `count`."""
    missing = count - weight.shape[dim]
    return torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])], dim) if missing > 0 else weight


def _set(conv: nn.Conv2d | nn.Conv3d, weight: Tensor) -> None:
    conv.weight.copy_(weight.reshape(conv.weight.shape))
    if conv.bias is not None:
        conv.bias.zero_()
