"""What the visual tokenizers that the project trains have in common: settings, codes and pictures, and their file."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import with_config
from safetensors.torch import save
from torch import Tensor, nn

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.settings.ranges import between, check_ranges, optional
from lumos_pl.tokenizers.visual import Strides, to_rgb, to_unit

Kind = Literal["fsq", "dictionary"]
Padding = Literal["zeros", "replicate"]
FORMATS: dict[Kind, str] = {"fsq": "lumos-fsq-1", "dictionary": "lumos-dictionary-1"}  # of the file
# settings that were added later, and what their absence in a file means
LATER = {"decoder_blocks": None, "padding": "zeros"}
OF_DICTIONARY = ("kind", "entries", "strides")  # the settings that a dictionary uses
MOST_CODES = 65_536  # codes are stored in 16 bits
MOST_STRIDE = 1024
CHUNK = 32  # clips encoded or decoded at once


@with_config(extra="forbid")
@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The shape of a tokenizer.

    Args:
        kind: `fsq`: convolutions around finite scalar quantization, see fsq.py; `dictionary`: the nearest of a number
            of patches, see dictionary.py.
        entries: patches of each kind in a dictionary, which are its codes.
        levels: quantization levels of each channel of `fsq`; their product is the codebook's size.
        strides: RGB frames and pixels of a cell in t, h, w, at most MOST_STRIDE each; h and w must be even.
        width, patch_width: channels of a cell, and of a patch, of `fsq`.
        blocks, patch_blocks: of `fsq`: residual blocks at each of these resolutions, in the encoder and in the decoder.
        decoder_blocks: of `fsq`: residual blocks of cells in the decoder; null: as many as in the encoder.
        padding: of `fsq`: what convolutions see beyond the picture's border: `zeros`, or `replicate`, the nearest cell
            or patch repeated. Before a clip's first cell they see that cell repeated, with either.
    """

    kind: Kind = "fsq"
    entries: int = 8192
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
        of_cells = {"blocks": blocks, "decoder_blocks": optional(blocks), "entries": between(2, MOST_CODES)}
        of_patches = {"patch_width": channels, "patch_blocks": between(0, 64)}
        check_ranges("tokenizer", self, width=channels, **of_cells, **of_patches)
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > MOST_CODES:
            expected = f"at least one, each from 2, their product at most {MOST_CODES}"
            raise ConfigError("wrong FSQ levels", where="tokenizer.levels", got=self.levels, expected=expected)
        in_range = len(self.strides) == 3 and all(1 <= stride <= MOST_STRIDE for stride in self.strides)
        if not in_range or self.strides[1] % 2 or self.strides[2] % 2:
            expected = f"three numbers from 1 to {MOST_STRIDE}, those of h and w even"
            raise ConfigError("wrong strides", where="tokenizer.strides", got=self.strides, expected=expected)

    def idle(self) -> dict[str, str]:
        """See `CanIdle`."""
        of_fsq = {item.name for item in fields(self)} - {*OF_DICTIONARY}
        return dict.fromkeys(of_fsq if self.kind == "dictionary" else ["entries"], "kind")


def shape_of(config: TokenizerConfig) -> dict[str, Any]:
    """What tells tokenizers apart, as plain values: the settings their kind uses, but of `LATER` only changed ones."""
    plain = asdict(config)
    if config.kind == "dictionary":
        return {name: plain[name] for name in OF_DICTIONARY}
    plain = {name: value for name, value in plain.items() if name not in ("kind", "entries")}
    return {name: value for name, value in plain.items() if name not in LATER or value != LATER[name]}


class Levels(NamedTuple):
    """What was rounded to make codes.

    Args:
        bounded: levels before rounding, [B, T, h, w, n].
        off_level: their distances to whole levels, of the same shape.
        of_channel: number of levels of each channel, [n].
    """

    bounded: Tensor
    off_level: Tensor
    of_channel: Tensor


class Reconstruction(NamedTuple):
    """A reconstruction in training.

    Args:
        pictures: [B, 3, 1 + t * k, H, W] in [-1, 1], differentiable.
        levels: only of a kind that has levels.
    """

    pictures: Tensor
    levels: Levels | None = None


class TrainedTokenizer(nn.Module):
    """Implements `VisualTokenizer`; trained by `TokenizerModule`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def strides(self) -> Strides:
        t, h, w = self.config.strides
        return t, h, w

    @property
    @abstractmethod
    def codebook_size(self) -> int: ...

    @abstractmethod
    def to_codes(self, pictures: Tensor) -> Tensor:
        """Pictures in [-1, 1], [B, 3, N, H, W], to codes [B, T, h, w]."""

    @abstractmethod
    def from_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, T, h, w] to pictures in [-1, 1], [B, 3, 1 + t * (T - 1), H, W]."""

    @abstractmethod
    def forward(self, pictures: Tensor) -> Reconstruction:
        """Pictures in [-1, 1], [B, 3, N, H, W], through their codes and back."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the shape and every weight; only meaningful once training has ended."""
        digest = hashlib.sha256(self._header.encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode() + weight.half().cpu().contiguous().numpy().tobytes())
        return f"{self.config.kind}-{digest.hexdigest()[:12]}"

    def encode(self, frames: Tensor) -> Tensor:
        """See `VisualTokenizer`."""
        return self._in_chunks(frames, lambda chunk: self.to_codes(to_unit(chunk)))

    def decode(self, codes: Tensor) -> Tensor:
        """See `VisualTokenizer`."""
        return self._in_chunks(codes, lambda chunk: to_rgb(self.from_codes(chunk)))

    @torch.inference_mode()
    def _in_chunks(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run in chunks on the weights' device and in their precision, even in autocast: codes must not differ."""
        device = next(self.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return torch.cat([function(chunk.to(device)) for chunk in x.split(CHUNK)])

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically: the shape in its header, the weights as fp16.

        Its fingerprint is that of the tokenizer read from it (`read_tokenizer`), no longer that of `self`.
        """
        weights = {name: weight.detach().cpu().half().contiguous() for name, weight in self.state_dict().items()}
        write_atomically(path, save(weights, {"format": FORMATS[self.config.kind], "config": self._header}))

    @property
    def _header(self) -> str:
        return json.dumps(shape_of(self.config), sort_keys=True)


def fold(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn blocks of `size` (a, b) into channels: [B, C, H, W] to [B, C * a * b, H / a, W / b]."""
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // size[0], size[0], w // size[1], size[1])
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unfold(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `fold`."""
    blocks: Tensor = x.unflatten(1, (-1, *size))  # [B, C, a, b, h, w]
    return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
