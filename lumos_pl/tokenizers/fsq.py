"""A small causal video tokenizer with finite scalar quantization (FSQ, arXiv:2309.15505).

    frames [N, H, W]   the first frame alone, then groups of strides[0]
    patches            each frame by itself, in patches of half a cell: 2-D convolutions
    cells [T, h, w]    one per code: convolutions over space, and over time from the past only
    code               len(levels) channels, each rounded to one of its levels

Encoder and decoder mirror each other. Both are causal: an image is the first latent frame of any
clip that starts with it, and a clip may be cut after any latent frame.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import with_config
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lumos_pl.errors import CheckpointError, ConfigError, DataError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.settings.ranges import between, check_ranges, optional
from lumos_pl.tokenizers.visual import Strides, pad_frames, to_rgb, to_unit

FORMAT = "lumos-fsq-1"
Padding = Literal["zeros", "replicate"]
# settings that came later, and what their absence in a file stands for
LATER = {"decoder_blocks": None, "padding": "zeros"}
CHUNK = 32  # clips that are encoded or decoded at once


@with_config(extra="forbid")
@dataclass(frozen=True, kw_only=True)
class FsqConfig:
    """Shape of the tokenizer.

    Args:
        levels: quantization levels of each channel; their product is the codebook's size.
        strides: RGB frames and pixels of a cell in t, h, w; h and w even.
        width, patch_width: channels of a cell, and of a patch.
        blocks, patch_blocks: residual blocks at each resolution, in encoder and decoder each.
        decoder_blocks: residual blocks of cells in the decoder; null: as many as the encoder's.
        padding: what a convolution sees beyond the picture's border: `zeros`, or `replicate`, the nearest cell or
            patch again. Before a clip's first cell it sees that cell again, with either.
    """

    levels: list[int] = field(default_factory=lambda: [8, 6, 5])
    strides: list[int] = field(default_factory=lambda: [4, 8, 8])
    width: int = 64
    patch_width: int = 32
    blocks: int = 2
    patch_blocks: int = 1
    decoder_blocks: int | None = None
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        channels, blocks = between(1, 4096), between(1, 64)
        of_cells = {"blocks": blocks, "decoder_blocks": optional(blocks)}
        of_patches = {"patch_width": channels, "patch_blocks": between(0, 64)}
        check_ranges("tokenizer", self, width=channels, **of_cells, **of_patches)
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > 65_536:
            expected = "at least one, each from 2, their product at most 65536"
            raise ConfigError("wrong FSQ levels", where="tokenizer.levels", got=self.levels, expected=expected)
        if len(self.strides) != 3 or min(self.strides) < 1 or self.strides[1] % 2 or self.strides[2] % 2:
            expected = "three numbers from 1, those of h and w even"
            raise ConfigError("wrong strides", where="tokenizer.strides", got=self.strides, expected=expected)


class Quantizer(nn.Module):
    """Rounds each channel to one of its levels; the gradient passes as if nothing were rounded."""

    levels: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        places = [math.prod(levels[:i]) for i in range(len(levels))]  # the first digit varies fastest
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Channels [..., n] to levels as real numbers, -0.5 to levels - 0.5: every level is as wide as the others."""
        with torch.autocast(z.device.type, enabled=False):
            return torch.sigmoid(z.float()) * self.levels - 0.5

    def forward(self, bounded: Tensor) -> Tensor:
        """What `bound` gives to digits as floats, 0 to levels - 1."""
        rounded = torch.minimum(bounded.round().clamp(min=0), self.levels - 1)
        return bounded + (rounded - bounded).detach()

    def to_codes(self, digits: Tensor) -> Tensor:
        """Digits [..., n] to codes [...]."""
        return (digits.round().long() * self.places).sum(-1)

    def to_digits(self, codes: Tensor) -> Tensor:
        """The inverse of `to_codes`."""
        return (codes[..., None] // self.places % self.levels).float()

    def center(self, digits: Tensor) -> Tensor:
        """Digits to [-1, 1]: what the decoder reads."""
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


def _cell_blocks(config: FsqConfig, count: int) -> nn.Sequential:
    def conv() -> nn.Module:
        return CausalConv(config.width, config.padding)

    return nn.Sequential(*(ResidualBlock(conv(), conv()) for _ in range(count)))


def _patch_blocks(config: FsqConfig) -> nn.Sequential:
    def conv() -> nn.Module:
        return nn.Conv2d(config.patch_width, config.patch_width, 3, padding=1, padding_mode=config.padding)

    return nn.Sequential(*(ResidualBlock(conv(), conv()) for _ in range(config.patch_blocks)))


class FsqTokenizer(nn.Module):
    """Implements `VisualTokenizer`; trained by `FsqModule`."""

    def __init__(self, config: FsqConfig) -> None:
        super().__init__()
        self.config = config
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
    def strides(self) -> Strides:
        t, h, w = self.config.strides
        return t, h, w

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.levels)

    @cached_property
    def fingerprint(self) -> str:
        """Of the shape and every weight; a tokenizer in training has none worth keeping."""
        digest = hashlib.sha256(_header(self.config).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode() + weight.half().cpu().contiguous().numpy().tobytes())
        return f"fsq-{digest.hexdigest()[:12]}"

    # -- the protocol --------------------------------------------------------------------------

    def encode(self, frames: Tensor) -> Tensor:
        """See `VisualTokenizer`."""
        return self._in_chunks(frames, lambda chunk: self.quantizer.to_codes(self.to_digits(to_unit(chunk))))

    def decode(self, codes: Tensor) -> Tensor:
        """See `VisualTokenizer`."""
        return self._in_chunks(codes, lambda chunk: to_rgb(self.from_digits(self.quantizer.to_digits(chunk))))

    @torch.inference_mode()
    def _in_chunks(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """On the weights' device, and in their precision even where training uses another: codes must not differ."""
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return torch.cat([function(chunk.to(device)) for chunk in x.split(CHUNK)])

    # -- differentiable ------------------------------------------------------------------------

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures in [-1, 1], [B, 3, 1 + t * k, H, W], to their reconstruction, and to their levels before rounding
        and how far these were from whole ones, [B, T, h, w, n]."""
        bounded = self.to_levels(pictures)
        digits = self.quantizer(bounded)
        return self.from_digits(digits), bounded, bounded - digits.detach()

    def to_digits(self, pictures: Tensor) -> Tensor:
        """[B, 3, N, H, W] to [B, T, h, w, n]."""
        digits: Tensor = self.quantizer(self.to_levels(pictures))
        return digits

    def to_levels(self, pictures: Tensor) -> Tensor:
        """The same before rounding."""
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

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all: the shape in its header, the weights as fp16.

        What `load` makes of it, and no longer `self`, is the tokenizer that its fingerprint names.
        """
        weights = {name: weight.detach().cpu().half().contiguous() for name, weight in self.state_dict().items()}
        write_atomically(path, save(weights, {"format": FORMAT, "config": _header(self.config)}))

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> Self:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is not one, or a weight is missing or of another shape.
        """
        try:
            content = read_regular(path)
            weights = {name: weight.float() for name, weight in load(content).items()}
            described = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], dict[str, dict[str, Any]])
            header = described.get("__metadata__", {})
        except DataError as error:
            got = error.got or error.what
            raise CheckpointError("cannot read the visual tokenizer", file=path, got=got) from None
        except SafetensorError as error:
            raise CheckpointError("cannot read the visual tokenizer", file=path, got=str(error)) from None
        if header.get("format") != FORMAT:
            raise CheckpointError(
                "not a visual tokenizer of this project", file=path, got=header.get("format"), expected=FORMAT
            )
        try:
            config = parse_json(header["config"].encode(), FsqConfig)
            with torch.device("meta"):  # whatever the header says, only what the file holds takes memory
                tokenizer = cls(config)
            tokenizer.load_state_dict(weights, assign=True)
            tokenizer.quantizer = Quantizer(config.levels)  # which has no weights
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError("damaged visual tokenizer", file=path, got=" ".join(str(error).split())) from None
        return tokenizer.eval().requires_grad_(False).to(device)


def shape_of(config: FsqConfig) -> dict[str, Any]:
    """What tells tokenizers apart, as plain values: without the `LATER` settings where they are as they were before."""
    return {name: value for name, value in asdict(config).items() if name not in LATER or value != LATER[name]}


def _header(config: FsqConfig) -> str:
    return json.dumps(shape_of(config), sort_keys=True)


def fold(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Blocks of `size` become channels: [B, C, H, W] to [B, C * a * b, H / a, W / b]."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // size[0], size[0], w // size[1], size[1])
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unfold(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `fold`."""
    blocks: Tensor = x.unflatten(1, (-1, *size))  # [B, C, a, b, h, w]
    return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
