"""Visual tokenizers: from RGB frames to codes and back, behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout

Strides = tuple[int, int, int]
_PARTS = ("fingerprint", "codebook_size", "strides", "encode", "decode")


class VisualTokenizer(Protocol):
    """A causal video tokenizer: the first frame by itself, then groups of `strides[0]` frames.

    `fingerprint` names the mapping: equal fingerprints give equal codes. `strides` are RGB frames
    and pixels per latent step in t, h, w; every code is below `codebook_size`.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def codebook_size(self) -> int: ...

    @property
    def strides(self) -> Strides: ...

    def encode(self, frames: Tensor) -> Tensor:
        """RGB uint8 [B, N, H, W, 3] to codes int64 [B, T, h, w], T = 1 + ceil((N - 1) / strides[0]).

        H and W are multiples of the strides. An incomplete last group is filled up with its last frame.
        """
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, T, h, w] to RGB uint8 [B, 1 + strides[0] * (T - 1), H, W, 3]."""
        ...


def check_visual_tokenizer(tokenizer: VisualTokenizer, layout: TokenLayout, *, file: Path | None = None) -> None:
    """Raise ConfigError unless this is a visual tokenizer whose codes are those of the layout.

    Args:
        file: the checkpoint that the layout comes from.
    """
    where = "visual_tokenizer"
    if missing := [name for name in _PARTS if not hasattr(tokenizer, name)]:
        got, expected = f"{type(tokenizer).__name__} without {', '.join(missing)}", "what VisualTokenizer says"
        raise ConfigError("no visual tokenizer", where=where, got=got, expected=expected)
    own = tokenizer.codebook_size, tuple(tokenizer.strides)
    if own != (layout.codebook_size, layout.strides):
        raise ConfigError(
            "not the visual tokenizer of this model",
            file=file,
            where=where,
            got="{} codes, strides {}".format(*own),
            expected=f"{layout.codebook_size} codes, strides {layout.strides}",
            fix="give the one that made its training data",
        )


def makes_codes_of(tokenizer: VisualTokenizer, fingerprint: str) -> bool:
    """Whether codes labelled with this fingerprint are `tokenizer`'s.

    Imported codes of the release only name the kind: `cosmos-dv4x8x8`, with any files and window.
    """
    return fingerprint in (tokenizer.fingerprint, tokenizer.fingerprint.rpartition("-")[0])


def pad_frames(frames: Tensor, stride: int) -> Tensor:
    """Repeat the last frame until the last group is full; frames [B, N, ...]."""
    missing = -(frames.shape[1] - 1) % stride
    return torch.cat([frames, frames[:, -1:].expand(-1, missing, *frames.shape[2:])], dim=1) if missing else frames


def to_unit(frames: Tensor) -> Tensor:
    """RGB uint8 [B, N, H, W, 3] to [-1, 1], [B, 3, N, H, W]."""
    return frames.movedim(-1, 1).float() / 127.5 - 1


def to_rgb(pictures: Tensor) -> Tensor:
    """The inverse of `to_unit`; values outside [-1, 1] are clipped."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).contiguous()
