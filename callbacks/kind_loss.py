"""The loss of images and of videos apart, for runs that train on both in turn."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MeanMetric

from callbacks.frame_loss_balance import PHASES
from callbacks.steps import RunCallback, figures_are_due, log_figures, of_step
from lumos_pl.batch import KINDS, MaskedBatch


class KindLoss(RunCallback):
    """Logs `loss/train/image`, `loss/train/video` and the same of `val`: means over their hidden tokens.

    Training figures cover the batches since the last logging (after a resume: since the resume). The `loss/train`
    of a single step is of whichever kind that step has, of the same one at every logging where the interval is even.

    Args:
        every_n_steps: optimizer steps between two loggings.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._means = {phase: {kind: MeanMetric(nan_strategy="disable") for kind in KINDS} for phase in PHASES}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for means in self._means.values():
            for mean in means.values():
                mean.to(trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        self._means["train"][batch.kind].update(of_step(outputs, "token_loss"))
        if figures_are_due(trainer, batch_idx, self.every_n_steps):
            self._log(trainer, "train")

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        losses = of_step(outputs, "token_loss")
        self._means["val"][batch.kind].update(losses if batch.counts else losses[:0])

    def on_validated(self, trainer: Trainer, module: LightningModule) -> None:
        self._log(trainer, "val")

    def _log(self, trainer: Trainer, phase: str) -> None:
        """On every rank: the means are over all of them, and all had batches of the same kinds."""
        seen = {kind: mean for kind, mean in self._means[phase].items() if mean.update_called}
        values = {f"loss/{phase}/{kind}": mean.compute().item() for kind, mean in seen.items()}
        for mean in seen.values():
            mean.reset()
        log_figures(trainer, values)
