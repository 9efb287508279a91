"""Separate losses of images and videos, for runs that train on both in turn."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torchmetrics import MeanMetric

from callbacks.steps import PHASES, PhaseFigures, log_figures, of_step
from lumos_pl.batch import KINDS, MaskedBatch
from lumos_pl.machinery.reusable_metric import ReusableMetric
from lumos_pl.settings.ranges import whole_number


class TokenMean(ReusableMetric, MeanMetric):
    """A mean over the tokens on all ranks."""


class KindLoss(PhaseFigures):
    """Logs `loss/train/image`, `loss/train/video` and the same for `val`: means over their hidden tokens.

    Training figures cover the batches since the last logging (after a resume: since the resume). `loss/train` itself
    is of a single step, and so of that step's kind; with an even interval every logging shows the same kind.

    Args:
        every_n_steps: optimizer steps between two loggings.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps")
        self._means = {phase: {kind: TokenMean(nan_strategy="disable") for kind in KINDS} for phase in PHASES}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for means in self._means.values():
            for mean in means.values():
                mean.to(trainer.strategy.root_device)

    def gather(self, phase: str, outputs: Any, batch: MaskedBatch) -> None:
        losses = of_step(outputs, "token_loss")
        self._means[phase][batch.kind].update(losses if batch.counts else losses[:0])

    def tell(self, trainer: Trainer, phase: str) -> None:
        """All ranks have had batches of the same kinds."""
        seen = {kind: mean for kind, mean in self._means[phase].items() if mean.update_called}
        values = {f"loss/{phase}/{kind}": mean.compute().item() for kind, mean in seen.items()}
        for mean in seen.values():
            mean.reset()
        log_figures(trainer, values)
