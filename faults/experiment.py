"""The experiment that the campaigns of a cluster train: tiny, of shards on a disk, with all that a resume restores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from data_modules.shards.sample import ShardSample
from data_modules.shards.writer import write_by_kind
from lumos_pl.seeding import generator

PER_STEP = 4  # micro-batches of an optimizer step, however many ranks share them
EVERY = 3  # steps between two checkpoints
STEPS = 12
PER_SHARD, PER_KIND = 3, 12  # samples
CODEBOOK = 240


def samples(per_kind: int = PER_KIND, sizes: Sequence[tuple[int, int]] = ((4, 2), (2, 4))) -> Iterator[ShardSample]:
    """Images and videos of random codes, in turn of these rows and columns: upright and wide."""
    for number in range(2 * per_kind):
        t, h, w = (3 if number % 2 else 1), *sizes[number // 2 % len(sizes)]
        codes = torch.randint(CODEBOOK, (t, h, w), generator=generator(0, "cluster", number))
        yield ShardSample(
            key=f"clip-{number:03d}",
            codes=codes.numpy().astype(np.uint16),
            text=f"caption {number}",
            frames=1 + 4 * (t - 1),
            fps=8,
            duration=1,
            width=8 * w,
            height=8 * h,
            source=f"made/{number}.mp4",
        )


def write_data(folder: Path) -> Path:
    """Shards of both kinds, and as much for validation."""
    for split in "train", "val":
        write_by_kind(
            folder / split,
            samples(),
            tokenizer="toy",
            codebook_size=CODEBOOK,
            strides=(4, 8, 8),
            samples_per_shard=PER_SHARD,
        )
    return folder


def settings(data: Path, runs: Path, /, **changed: Any) -> dict[str, Any]:
    """What the experiment's YAML says; `changed` by section, or as a value of its own."""
    content: dict[str, Any] = {
        "base": "debug",
        "run": {"dir": str(runs)},
        "data": {
            "root": str(data / "train"), "val_root": str(data / "val"), "caption_dropout": 0.3, "given_prob": 0.3,
            "image": {"batch_size": 2}, "video": {"batch_size": 1, "frames": 9}, "num_workers": 0, "timeout_s": 20,
            "val_batches": 4,
        },
        "optimizer": {"ema_decay": 0.9},
        "trainer": {
            "max_steps": STEPS, "accumulate": PER_STEP, "accelerator": "cpu", "val_every_n_steps": 4,
            "rank_timeout_s": 10, "start_timeout_s": 30,
        },
        "checkpoint": {"every_n_steps": EVERY, "keep": 2},
        "callbacks": {
            "progress_bar": False, "log_every_n_steps": 1, "sample_grid_every_n_steps": 0, "heatmap_every_n_steps": 0,
        },
    }  # fmt: skip
    for section, values in changed.items():
        content[section] = content.get(section, {}) | values if isinstance(values, dict) else values
    return content


def write_experiment(file: Path, data: Path, runs: Path, /, **changed: Any) -> Path:
    file.write_text(yaml.safe_dump(settings(data, runs, **changed)))
    return file


def one_command(experiment: Path, *added: str, name: str = "x") -> list[str]:
    """What a scheduler repeats, whatever happened before, and however many ranks it starts."""
    return ["train", str(experiment), "--resume-or-start", f"run.name={name}", *added]
