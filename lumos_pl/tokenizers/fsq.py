"""A small causal video tokenizer with finite scalar quantization (FSQ, arXiv:2309.15505).

   frames [N, H, W]   the first frame by itself, then groups of strides[0]
    patches            each frame by itself, in patches of half a cell: 2-D convolutions
    cells [T, h, w]    one per code: convolutions over space, and over time from the past only
    code               len(levels) channels, each rounded to one of its levels

Encoder and decoder mirror each other. Both are causal: an image is the first latent frame of any
clip that starts with it, and a clip may be cut after any latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumos_pl.tokenizers.trained import Levels, Padding, Reconstruction, TokenizerConfig, TrainedTokenizer, fold, unfold
from lumos_pl.tokenizers.visual import pad_frames


class Quantizer(nn.Module):
    """Rounds each channel to one of its levels; gradients pass as if nothing were rounded."""

    levels: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        places = [math.prod(levels[:i]) for i in range(len(levels))]  # the first digit varies fastest
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Map channels [..., n] to real-valued levels in [-0.5, levels - 0.5], so that all levels are equally wide."""
        with torch.autocast(z.device.type, enabled=False):
            return torch.sigmoid(z.float()) * self.levels - 0.5

    def forward(self, bounded: Tensor) -> Tensor:
        """Round the output of `bound` to digits, as floats, 0 to levels - 1."""
        rounded = torch.minimum(bounded.round().clamp(min=0), self.levels - 1)
        return bounded + (rounded - bounded).detach()

    def to_codes(self, digits: Tensor) -> Tensor:
        """Digits [..., n] to codes [...]."""
        return (digits.round().long() * self.places).sum(-1)

    def to_digits(self, codes: Tensor) -> Tensor:
        """The inverse of `to_codes`."""
        return (codes[..., None] // self.places % self.levels).float()

    def center(self, digits: Tensor) -> Tensor:
        """Digits to [-1, 1], the input of the decoder."""
        return digits / (self.levels - 1) * 2 - 1


class CausalConv(nn.Module):
    """A convolution over space and, in time, over this step and the one before; [B, C, T, h, w]."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (2, 3, 3), padding=(0, 1, 1), padding_mode=padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x[:, :, :1], x], dim=2))
        return out


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the second convolution starts at zero."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        for parameter in second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


def _cell_blocks(config: TokenizerConfig, count: int) -> nn.Sequential:
    def conv() -> nn.Module:
        return CausalConv(config.width, config.padding)

    return nn.Sequential(*(ResidualBlock(conv(), conv()) for _ in range(count)))


def _patch_blocks(config: TokenizerConfig) -> nn.Sequential:
    def conv() -> nn.Module:
        return nn.Conv2d(config.patch_width, config.patch_width, 3, padding=1, padding_mode=config.padding)

    return nn.Sequential(*(ResidualBlock(conv(), conv()) for _ in range(config.patch_blocks)))


class FsqTokenizer(TrainedTokenizer):
    """The kind `fsq`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        t, h, w = config.strides
        self.patch = (h // 2, w // 2)
        n_pixels, n_patches = 3 * self.patch[0] * self.patch[1], 4 * t
        self.patch_in = nn.Conv2d(n_pixels, config.patch_width, 1)
        self.patch_encoder = _patch_blocks(config)
        self.cell_in = nn.Conv3d(n_patches * config.patch_width, config.width, 1)
        self.cell_encoder = _cell_blocks(config, config.blocks)
        self.code_in = nn.Conv3d(config.width, len(config.levels), 1)
        self.quantizer = Quantizer(config.levels)
        self.code_out = nn.Conv3d(len(config.levels), config.width, 1)
        self.cell_decoder = _cell_blocks(config, config.decoder_blocks or config.blocks)
        self.cell_out = nn.Conv3d(config.width, n_patches * config.patch_width, 1)
        self.patch_decoder = _patch_blocks(config)
        self.patch_out = nn.Conv2d(config.patch_width, n_pixels, 1)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.levels)

    def to_codes(self, pictures: Tensor) -> Tensor:
        """See `TrainedTokenizer`."""
        return self.quantizer.to_codes(self.to_digits(pictures))

    def from_codes(self, codes: Tensor) -> Tensor:
        """See `TrainedTokenizer`."""
        return self.from_digits(self.quantizer.to_digits(codes))

    def forward(self, pictures: Tensor) -> Reconstruction:
        """See `TrainedTokenizer`."""
        bounded = self.to_levels(pictures)
        digits = self.quantizer(bounded)
        levels = Levels(bounded, bounded - digits.detach(), self.quantizer.levels)
        return Reconstruction(self.from_digits(digits), levels)

    def to_digits(self, pictures: Tensor) -> Tensor:
        """[B, 3, N, H, W] to [B, T, h, w, n]."""
        digits: Tensor = self.quantizer(self.to_levels(pictures))
        return digits

    def to_levels(self, pictures: Tensor) -> Tensor:
        """As `to_digits`, before rounding."""
        t = self.config.strides[0]
        frames = pad_frames(pictures.movedim(1, -1), t)
        frames = torch.cat([frames[:, :1].expand(-1, t - 1, *frames.shape[2:]), frames], dim=1)  # the first alone
        b, n = frames.shape[:2]
        flat = frames.movedim(-1, 2).flatten(0, 1)  # [B * N, 3, H, W]
        patches = self.patch_encoder(self.patch_in(fold(flat, self.patch)))
        cells = fold(patches, (2, 2)).unflatten(0, (b, n // t, t))  # [B, T, t, C, h, w]
        x = self.cell_encoder(self.cell_in(cells.flatten(2, 3).transpose(1, 2)))
        return self.quantizer.bound(self.code_in(x).movedim(1, -1))

    def from_digits(self, digits: Tensor) -> Tensor:
        """[B, T, h, w, n] to pictures in [-1, 1], [B, 3, 1 + t * (T - 1), H, W]."""
        t = self.config.strides[0]
        x = self.code_out(self.quantizer.center(digits).movedim(-1, 1))
        cells = self.cell_out(self.cell_decoder(x)).transpose(1, 2)  # [B, T, t * C, h, w]
        b, n_cells = cells.shape[:2]
        patches = unfold(cells.unflatten(2, (t, -1)).flatten(0, 2), (2, 2))
        pixels = unfold(self.patch_out(self.patch_decoder(patches)), self.patch)
        frames: Tensor = pixels.unflatten(0, (b, n_cells * t))
        return frames[:, t - 1 :].transpose(1, 2)
