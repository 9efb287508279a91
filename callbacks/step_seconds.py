"""How long optimizer steps take, for trainings that do not count tokens."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.moments import Moment, Spans, now, quantile
from callbacks.steps import figures_are_due, log_figures, step_is_due


class StepSeconds(Callback):
    """Logs `throughput/step_seconds_median` over the steps since the last logging, data loading and saving included.

    Args:
        every_n_steps: optimizer steps between two loggings.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._steps = Spans()
        self._begun: Moment | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = Moment(trainer.strategy.root_device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = Moment(trainer.strategy.root_device)  # the next step starts here: what came before is not counted

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not step_is_due(trainer, 1):
            return
        ended = Moment(trainer.strategy.root_device)
        if self._begun is not None:
            self._steps.add(self._begun, ended)
        self._begun = ended
        if figures_are_due(trainer, self.every_n_steps):
            now(trainer.strategy.root_device)  # wait until the device has passed all of them
            log_figures(trainer, {"throughput/step_seconds_median": quantile(self._steps.seconds(), 0.5)})
            self._steps = Spans()
