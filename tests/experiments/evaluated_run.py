"""A run's folder to evaluate: a tiny decoder over 9-frame clips, as a training would have left it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.tiny_checkpoint import write_checkpoint

SYNTHETIC = {"n_samples": 6, "width": 32, "height": 32, "fps": 8}
DATA = {"kind": "video", "val_root": "synthetic", "video": {"frames": 9}, "synthetic": SYNTHETIC, "prompt": "{caption}"}
WORLD = {"side": 32, "frames": 5}


def make_run(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A run's folder with a checkpoint of 9-frame clips of 4x4 codes."""
    settings = {"data": DATA, "world": {"train": 1, **WORLD}, **config}
    write_checkpoint(folder / "checkpoints" / "step-00000007.ckpt", seed=seed, **settings)
    return as_a_run(folder)


def as_a_run(folder: Path) -> Path:
    """Add what else a run's folder has: the digest, without which the checkpoint is not complete, and a config.yaml."""
    file = folder / "checkpoints" / "step-00000007.ckpt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")
    (folder / "config.yaml").write_text("")
    return folder
