"""The loss and the number of samples of each data set of a mixture, where each optimizer step is of one data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.steps import PHASES, PhaseFigures, log_figures, of_step
from lumos_pl.batch import MaskedBatch
from lumos_pl.machinery.reusable_metric import ReusableMetric
from lumos_pl.settings.plain import check_texts
from lumos_pl.settings.ranges import whole_number


class SourceSums(ReusableMetric):
    """Sums of the loss, the hidden tokens and the samples of each source, over all ranks.

    A batch's source is read from its appearances, `SOURCE/EPOCH/KEY`. Batches of no known source are ignored, as are
    those that count on another rank.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(names), 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_loss: Tensor, batch: MaskedBatch) -> None:
        """Add a batch, without synchronizing with the device.

        Args:
            token_loss: [M] loss of each target.
        """
        name = batch.appearances[0].rsplit("/", 2)[0]
        if name in self.names and batch.counts:
            own = self.sums[self.names.index(name)]
            own[0] += token_loss.sum(dtype=torch.float64)
            own[1] += len(token_loss)
            own[2] += len(batch.appearances)

    def compute(self) -> dict[str, tuple[float, float, int]]:
        """Loss, tokens and samples by source; sources without any are absent."""
        rows = zip(self.names, self.sums.tolist(), strict=True)
        return {name: (loss / tokens, tokens, int(samples)) for name, (loss, tokens, samples) in rows if tokens}


class SourceLoss(PhaseFigures):
    """Logs the loss of each data set of a mixture, and how much of it was trained on. Tags:

        loss_source/train/NAME     mean loss of its hidden tokens since the last logging (or the resume)
        samples/NAME               number of its samples trained on since then
        loss_source/val/NAME       mean loss over its part of a validation

    Args:
        names: of the data sets, as in the settings.
        every_n_steps: optimizer steps between two loggings.
    """

    def __init__(self, names: Sequence[str], every_n_steps: int = 10) -> None:
        self.every_n_steps, names = whole_number(every_n_steps, "every_n_steps"), check_texts(names, "names")
        of_phase = {"train": names, "val": [f"val/{name}" for name in names]}
        self._sums = {phase: SourceSums(of_phase[phase]) for phase in PHASES}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for sums in self._sums.values():
            sums.to(trainer.strategy.root_device)

    def gather(self, phase: str, outputs: Any, batch: MaskedBatch) -> None:
        self._sums[phase].update(of_step(outputs, "token_loss"), batch)

    def tell(self, trainer: Trainer, phase: str) -> None:
        figures = {}
        for name, (loss, _, samples) in self._sums[phase].compute().items():
            source = name.removeprefix("val/")
            figures[f"loss_source/{phase}/{source}"] = loss
            if phase == "train":
                figures[f"samples/{source}"] = float(samples)
        self._sums[phase].reset()
        log_figures(trainer, figures)
