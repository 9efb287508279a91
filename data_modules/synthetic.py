"""Made-up samples, held in memory: blobs moving over a constant background, as code maps.

For tests and quick runs. A clip's text names the blob's code and its motion, so a model has
something to learn within seconds; its place at the start is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.config import SYNTHETIC, SyntheticConfig
from data_modules.shards.manifest import Manifest
from data_modules.shards.metadata import Columns
from data_modules.shards.sample import ShardSample, text_length
from data_modules.shards.table import ShardEntry
from lumos_pl.layout import TokenLayout, whole_seconds
from lumos_pl.seeding import generator

SAMPLES_PER_SHARD = 8
N_CODES = 7  # that a blob may have; the background's is 0
MOTIONS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}  # cells (row, col) per latent frame


@dataclass(frozen=True, kw_only=True)
class MemoryShards:
    """Samples in memory, behind the same manifest and reading as a folder of shards."""

    folder: Path
    manifest: Manifest
    shards: tuple[Sequence[ShardSample], ...]

    @classmethod
    def of(cls, samples: Sequence[ShardSample], layout: TokenLayout, *, tokenizer: str = SYNTHETIC) -> Self:
        """Shards of these samples.

        Args:
            tokenizer: fingerprint of the visual tokenizer that made their codes.
        """
        shards = tuple(samples[i : i + SAMPLES_PER_SHARD] for i in range(0, len(samples), SAMPLES_PER_SHARD))
        shapes = sorted({sample.codes.shape for sample in samples})
        entries = [
            ShardEntry(
                file=f"shard-{number:06d}.tar",
                n_samples=len(shard),
                n_bytes=sum(sample.codes.nbytes for sample in shard),
                sha256="",
                shapes=tuple(shapes.index(sample.codes.shape) for sample in shard),
                text_lengths=tuple(map(text_length, shard)),
            )
            for number, shard in enumerate(shards)
        ]
        manifest = Manifest(
            tokenizer=tokenizer,
            codebook_size=layout.codebook_size,
            strides=layout.strides,
            shapes=tuple(shapes),
            shards=tuple(entries),
        )
        return cls(folder=Path(SYNTHETIC), manifest=manifest, shards=shards)

    def file(self, index: int) -> Path:
        return self.folder / self.manifest.table.file(index)

    def read(self, index: int) -> list[ShardSample]:
        return list(self.shards[index])

    def columns(self) -> Columns:
        return Columns.of(sample for shard in self.shards for sample in shard)


def synthetic_shards(
    config: SyntheticConfig, layout: TokenLayout, *, kind: str, split: str, frames: int
) -> MemoryShards:
    """Shards of `config.n_samples` samples; those of two kinds or splits differ.

    Args:
        kind: `image` (one frame at 1 fps, whatever `frames` says) or `video`.
        split: `train` or `val`.
        frames: RGB frames of a video.
    Raises:
        DataError: a size that the layout's grid does not have.
    """
    frames, fps = (1, 1) if kind == "image" else (frames, config.fps)
    sizes = [(config.width, config.height), (config.height, config.width)]
    samples = []
    for number in range(config.n_samples):
        width, height = sizes[number % 2]
        draws = generator(0, "synthetic", kind, split, number)
        text, codes = _blob((layout.latent_frames(frames), *layout.latent_size(width, height)), layout, draws)
        samples.append(
            ShardSample(
                key=f"{split}-{number:06d}",
                codes=codes,
                text=tuple(text.encode()),  # ids of letters in either layout
                frames=frames,
                fps=fps,
                duration=whole_seconds(frames, fps),
                width=width,
                height=height,
                source=SYNTHETIC,
            )
        )
    return MemoryShards.of(samples, layout)


def _blob(shape: tuple[int, int, int], layout: TokenLayout, draws: torch.Generator) -> tuple[str, NDArray[np.uint16]]:
    """A blob of about a quarter of the picture, moving a cell a frame and re-entering on the other side."""
    latent_frames, rows, cols = shape
    number, motion, row, col = (int(i) for i in torch.randint(0, 1 << 20, (4,), generator=draws))
    number = number % N_CODES + 1
    name = list(MOTIONS)[motion % len(MOTIONS)]
    still = np.zeros((rows, cols), np.uint16)
    still[: max(1, rows // 2), : max(1, cols // 2)] = number * (layout.codebook_size - 1) // N_CODES
    down, right = MOTIONS[name]
    codes = [np.roll(still, (row + frame * down, col + frame * right), (0, 1)) for frame in range(latent_frames)]
    return f"blob {number} moving {name}", np.stack(codes)
