"""The progress bar of a run that trains by steps, as one long epoch."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from callbacks.throughput import Throughput
from lumos_pl.settings.ranges import whole_number

SHOWN = "loss/train", "psnr/val"


class StepProgressBar(RichProgressBar):
    """Lightning's bar, naming the optimizer step instead of an epoch.

    Metrics are read every `every_n_steps` steps, because reading them makes the CPU wait for the GPU. Lightning reads
    whatever is logged with `prog_bar=True` after every batch, bar or no bar, so nothing here logs that way in training.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(refresh_rate=10, theme=RichProgressBarTheme(metrics_format=",.3f"))
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps")
        self._shown: dict[str, Any] = {}

    @property
    def total_train_batches(self) -> int | float:
        """The bar's total: the whole training, even when resumed; Lightning would count what is left."""
        trainer = self.trainer
        of_steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else math.inf
        return min(trainer.num_training_batches, of_steps)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        if trainer.sanity_checking:
            return {}
        if not self._shown or trainer.global_step % self.every_n_steps == 0:
            logged = trainer.callback_metrics
            self._shown = {name: logged[name].item() for name in SHOWN if name in logged}
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Throughput) and callback.tokens_per_second is not None:
                    self._shown["tokens/s"] = callback.tokens_per_second
        return {"step": str(trainer.global_step), **self._shown}

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"
