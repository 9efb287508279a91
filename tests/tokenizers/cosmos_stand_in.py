"""A stand-in for NVIDIA's Cosmos DV4x8x8: the same interface, codebook and causality, without weights.

    python -m tests.tokenizers.cosmos_stand_in DIR

A cell's code is its mean colour: the digits 0, 1, 2 hold red, green and blue in 8 steps each, the
digits 3, 4, 5 divide each step by 5. Flat areas come back within 2 % of the range.
"""

# No `from __future__ import annotations`: TorchScript reads the classes' annotations as types.

import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StandInEncoder(nn.Module):
    """Pictures in [-1, 1], [B, 3, 1 + 4k, H, W], to what NVIDIA's encoder returns: codes, channels, a loss of zero."""

    places: Tensor

    def __init__(self, cell: int = 8) -> None:
        super().__init__()
        self.cell = cell
        self.gain = nn.Parameter(torch.ones(1))  # the weights' precision must be the input's, as in any network
        self.register_buffer("places", torch.tensor([1, 8, 64, 512, 2560, 12_800], dtype=torch.int32))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.code(pictures)

    def code(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if pictures.dtype != self.gain.dtype:
            raise ValueError("pictures and weights differ in precision")
        first = pictures[:, :, :1].repeat(1, 1, 3, 1, 1)
        groups = torch.cat([first, pictures], dim=2) * self.gain
        colors = F.avg_pool3d(groups.float(), [4, self.cell, self.cell])
        steps = ((colors + 1) * 20).long().clamp(0, 39)  # 8 * 5 steps
        digits = torch.cat([steps // 5, steps % 5], dim=1).int()
        codes = (digits * self.places.view(1, 6, 1, 1, 1)).sum(1).int()
        return codes, digits.to(pictures.dtype), torch.zeros(1)


class StandInDecoder(nn.Module):
    """Codes [B, T, h, w] to pictures [B, 3, 1 + 4 (T - 1), H, W]."""

    places: Tensor
    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("places", torch.tensor([1, 8, 64, 512, 2560, 12_800], dtype=torch.int32))
        self.register_buffer("levels", torch.tensor([8, 8, 8, 5, 5, 5], dtype=torch.int32))

    def forward(self, codes: Tensor) -> Tensor:
        return self.pictures(codes)

    def pictures(self, codes: Tensor) -> Tensor:
        shape = [1, 6, 1, 1, 1]
        digits = codes.unsqueeze(1) // self.places.view(shape) % self.levels.view(shape)
        steps = digits[:, :3] * 5 + digits[:, 3:]
        colors = ((steps.float() + 0.5) / 20 - 1).to(self.gain.dtype) * self.gain
        pictures = colors.repeat_interleave(4, dim=2).repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        return pictures[:, :, 3:]


def write_stand_in(folder: Path, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> Path:
    """Write `encoder.jit` and `decoder.jit` into a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what NVIDIA publishes
        torch.jit.script(encoder or StandInEncoder()).save(str(folder / "encoder.jit"))
        torch.jit.script(decoder or StandInDecoder()).save(str(folder / "decoder.jit"))
    return folder


if __name__ == "__main__":
    write_stand_in(Path(sys.argv[1]))
