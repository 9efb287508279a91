"""What a Lightning user has: a module, data and a Trainer of their own. Nothing here is the application's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.config import DataConfig, SourceConfig, SyntheticConfig
from data_modules.token_data import TokenDataModule
from lumos_pl.batch import MaskedBatch
from lumos_pl.layout import LayoutConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig

LAYOUT = LayoutConfig(preset="compact", codebook_size=1000)  # of the visual tokenizer that comes with the project
MODEL = ModelConfig(size="debug", dim=32, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=64, max_length=512)

MakeModule = Callable[..., LumosModule]
MakeData = Callable[..., TokenDataModule]
MakeTrainer = Callable[..., Trainer]


class Appearances(Callback):
    """What every training batch was of, and the step that it belonged to."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, tuple[str, ...]]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MaskedBatch, batch_idx: int
    ) -> None:
        self.steps.append((trainer.global_step, batch.appearances))


def make_module(**changes: Any) -> LumosModule:
    given: dict[str, Any] = {"optimizer": OptimizerConfig(lr=1e-2, warmup_steps=2), "seed": 3, **changes}
    return LumosModule(MODEL, LAYOUT, **given)


def make_data(**changes: Any) -> TokenDataModule:
    settings: dict[str, Any] = {
        "kind": "joint",
        "root": "synthetic",
        "val_root": "synthetic",
        "image": SourceConfig(batch_size=2),
        "video": SourceConfig(batch_size=1, frames=5),
        "synthetic": SyntheticConfig(n_samples=20, width=16, height=16),
        "num_workers": 0,
        "val_batches": 2,
        "prompt": "{caption}",
        "given_prob": 0.3,
        **changes,
    }
    return TokenDataModule(DataConfig(**settings), LAYOUT.build(), seed=3)


@pytest.fixture
def trainer(tmp_path: Path) -> MakeTrainer:
    """A Trainer with Lightning's defaults, but for what it would print; its checkpoints have each step's number."""

    def make(*callbacks: Callback, folder: str = "run", every: int = 1, **arguments: Any) -> Trainer:
        saved = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=every)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        given = {"accelerator": "cpu", "devices": 1, **quiet, **arguments}
        return Trainer(callbacks=[saved, *callbacks], default_root_dir=tmp_path / folder, **given)

    return make


@pytest.fixture
def fit(trainer: MakeTrainer, tmp_path: Path) -> Callable[..., tuple[LumosModule, Appearances]]:
    """Train in a Trainer of these arguments; with `resume`, from the checkpoint of that step of that folder."""

    def run(
        *callbacks: Callback,
        module: LumosModule | None = None,
        data: TokenDataModule | None = None,
        resume: tuple[str, int] | None = None,
        **arguments: Any,
    ) -> tuple[LumosModule, Appearances]:
        module, appearances = module or make_module(), Appearances()
        checkpoint = None if resume is None else tmp_path / resume[0] / f"step={resume[1]}.ckpt"
        trainer(appearances, *callbacks, **arguments).fit(module, datamodule=data or make_data(), ckpt_path=checkpoint)
        return module, appearances

    return run


def same_weights(one: LumosModule, other: LumosModule) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
