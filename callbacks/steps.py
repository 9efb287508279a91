"""When a callback acts, and at which step its figures stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private import accumulates


class RunCallback(Callback):
    """A callback of the run alone: Lightning's sanity check, which validates before the first step, is no part of it.

    Nothing is to be logged in that check, and nothing measured in it is to be among later figures. A subclass has
    these hooks instead of Lightning's of the same places, which are called in the check too.
    """

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each batch of a validation."""

    def on_validated(self, trainer: Trainer, module: LightningModule) -> None:
        """After the last one."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self.on_validated_batch(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.on_validated(trainer, pl_module)


def step_is_due(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """Whether this batch closed an optimizer step whose number is a multiple of `every_n_steps` (0: never).

    The answer follows from counters that a checkpoint restores and all ranks share, so it is the
    same on every rank and in a resumed run.
    """
    closes_step = not accumulates(trainer)
    return every_n_steps > 0 and closes_step and trainer.global_step % every_n_steps == 0


def figures_are_due(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """`step_is_due`, and after the last step: what was gathered since the last logging is to be in the checkpoint."""
    is_last = trainer.global_step == trainer.max_steps and step_is_due(trainer, batch_idx, 1)
    return is_last or step_is_due(trainer, batch_idx, every_n_steps)


def of_step(outputs: Any, name: str) -> Tensor:
    """What a step gave beside its loss, `token_loss` or `target_frames`.

    Raises:
        ConfigError: a step of somebody's own gives the loss alone.
    """
    given = outputs if isinstance(outputs, Mapping) else {}
    if name not in given:
        raise ConfigError(
            "the outputs of a step lack what a callback shows",
            where="LightningModule",
            got=", ".join(given) or type(outputs).__name__,
            expected=f"{name}, as in those of LumosModule",
            fix="return `super().training_step(..) | {'loss': yours}`, and so in validation_step; or leave it out",
        )
    found: Tensor = given[name]
    return found


def run_folder(trainer: Trainer) -> Path:
    """Where a callback leaves its files; made if nothing else made it."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def step_index(trainer: Trainer) -> int:
    """Index of the optimizer step that ran last, from 0: where Lightning puts its own figures, too."""
    return max(trainer.global_step - 1, 0)


def log_figures(trainer: Trainer, figures: Mapping[str, float]) -> None:
    """Give all loggers the figures of the step that ran last, if there are any."""
    if figures:
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), step_index(trainer))
