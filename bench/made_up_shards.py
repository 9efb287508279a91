"""Shards of random codes, for benchmarks that ask how fast they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.sample import ShardSample
from data_modules.shards.writer import ShardWriter
from data_modules.stream.loader import TokenLoader
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from lumos_pl.layout import lumos1_layout

LAYOUT = lumos1_layout()
TEXT = tuple(range(20_000, 20_200))
FPS = 12


def write_made_up_shards(folder: Path, *, samples: int, frames: int, width: int, height: int) -> None:
    """Clips of the released vocabulary with 200 ids of text each."""
    draws = np.random.default_rng(0)
    shape = LAYOUT.latent_frames(frames), *LAYOUT.latent_size(width, height)
    with ShardWriter(
        folder, tokenizer="made-up", codebook_size=LAYOUT.codebook_size, strides=LAYOUT.strides, samples_per_shard=64
    ) as writer:
        for number in range(samples):
            sample = ShardSample(
                key=f"made-up-{number:06d}",
                codes=draws.integers(0, LAYOUT.codebook_size, shape, dtype=np.uint16),
                text=TEXT,
                frames=frames,
                fps=FPS,
                duration=max(1, frames // FPS),
                width=width,
                height=height,
                source="made-up",
            )
            writer.add(sample)


def stream_of(folder: Path, *, frames: int, batch_size: int, workers: int, step: int = 0) -> TokenLoader:
    """What a run of one process reads of them, from a step on."""
    source = SourceConfig(frames=frames, batch_size=batch_size)
    config = DataConfig(kind="video", root=str(folder), num_workers=workers, caption_dropout=0.0, video=source)
    data = TokenDataModule(config, LAYOUT, seed=0)
    data.setup("fit")
    return data.stream(lambda: StreamPosition(start=step))
