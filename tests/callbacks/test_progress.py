"""The progress bar: how far the whole training is, whatever it was broken off at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.progress import StepProgressBar
from tests.contract.conftest import make_data, make_module


class Read(Callback):
    """What the bar says after each batch."""

    def __init__(self, bar: StepProgressBar) -> None:
        self.bar, self.said = bar, list[str]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self.bar.progress is not None
        (task,) = self.bar.progress.tasks
        self.said.append(f"{task.completed}/{task.total}")


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., list[str]]:
    def run(resume: int | None = None, **arguments: Any) -> list[str]:
        bar = StepProgressBar(1)
        read, saved = Read(bar), ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0}
        trainer = Trainer(callbacks=[bar, read, saved], default_root_dir=tmp_path, **settings, **arguments)
        checkpoint = None if resume is None else tmp_path / f"step={resume}.ckpt"
        trainer.fit(make_module(), datamodule=make_data(), ckpt_path=checkpoint)
        return read.said

    return run


@pytest.mark.parametrize("limits", [{"max_steps": 4}, {"max_epochs": 1, "limit_train_batches": 8}])
@pytest.mark.parametrize("step", [1, 3])
def test_it_counts_all_batches_of_a_training_that_is_gone_on_with(
    limits: dict[str, int], step: int, train: Callable[..., list[str]]
) -> None:
    whole = train(accumulate_grad_batches=2, **limits)
    assert whole == [f"{batch}/8" for batch in range(1, 9)]
    assert train(resume=step, accumulate_grad_batches=2, **limits) == whole[2 * step :]


def test_it_counts_the_batches_of_an_epoch_where_there_are_several(train: Callable[..., list[str]]) -> None:
    assert train(max_epochs=2, limit_train_batches=3) == ["1/3", "2/3", "3/3"] * 2
