"""When a callback acts, and under which step its figures are logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lumos_pl.batch import MaskedBatch
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private.loops import accumulates

PHASES = ("train", "val")


class RunCallback(Callback):
    """A callback that ignores Lightning's sanity check, which validates before the first step.

    Nothing should be logged in that check, and nothing measured in it should count in later figures. A subclass uses
    these hooks instead of Lightning's of the same places, which are called in the check too.
    """

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each batch of a validation."""

    def on_validated(self, trainer: Trainer, module: LightningModule) -> None:
        """After the last batch of a validation."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking:
            self.on_validated_batch(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.on_validated(trainer, pl_module)


class PhaseFigures(RunCallback):
    """Gathers figures over batches and logs them by phase: at intervals in training, at the end of a validation.

    Training figures cover the batches since the last logging (after a resume: since the resume).
    """

    every_n_steps: int  # optimizer steps between two loggings of a training

    def gather(self, phase: str, outputs: Any, batch: MaskedBatch) -> None:
        """Add a batch to a phase's figures, without synchronizing with the device."""
        raise NotImplementedError

    def tell(self, trainer: Trainer, phase: str) -> None:
        """Log a phase's figures and reset them; called on every rank, because they cover all ranks."""
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.gather("train", outputs, batch)
        if figures_are_due(trainer, self.every_n_steps):
            self.tell(trainer, "train")

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.gather("val", outputs, batch)

    def on_validated(self, trainer: Trainer, module: LightningModule) -> None:
        self.tell(trainer, "val")


def step_is_due(trainer: Trainer, every_n_steps: int) -> bool:
    """Whether this batch closed an optimizer step whose number is a multiple of `every_n_steps` (0: never).

    The answer follows from counters that a checkpoint restores and all ranks share, so it is the
    same on every rank and in a resumed run.
    """
    return every_n_steps > 0 and not accumulates(trainer) and trainer.global_step % every_n_steps == 0


def figures_are_due(trainer: Trainer, every_n_steps: int) -> bool:
    """`step_is_due`, or after the last step, so that the checkpoint has what was gathered since the last logging."""
    is_last = trainer.global_step == trainer.max_steps and step_is_due(trainer, 1)
    return is_last or step_is_due(trainer, every_n_steps)


def of_step(outputs: Any, name: str) -> Tensor:
    """What a step returned next to its loss: `token_loss` or `target_frames`.

    Raises:
        ConfigError: a custom step that returns only the loss.
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
    """The folder where callbacks leave their files; created if it does not exist."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def step_index(trainer: Trainer) -> int:
    """Index of the optimizer step that ran last, from 0; Lightning logs its own figures under it too."""
    return max(trainer.global_step - 1, 0)


def log_figures(trainer: Trainer, figures: Mapping[str, float]) -> None:
    """Log figures under the step that ran last, in all loggers; does nothing without figures."""
    if figures:
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), step_index(trainer))
