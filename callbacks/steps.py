"""When a callback acts, and at which step its figures stand."""

from __future__ import annotations

from lightning.pytorch import Trainer


def step_is_due(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """Whether this batch closed an optimizer step whose number is a multiple of `every_n_steps` (0: never).

    The answer follows from counters that a checkpoint restores and all ranks share, so it is the
    same on every rank and in a resumed run.
    """
    closes_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return every_n_steps > 0 and closes_step and trainer.global_step % every_n_steps == 0


def figures_are_due(trainer: Trainer, batch_idx: int, every_n_steps: int) -> bool:
    """`step_is_due`, and after the last step: what was gathered since the last logging is to be in the checkpoint."""
    is_last = trainer.global_step == trainer.max_steps and step_is_due(trainer, batch_idx, 1)
    return is_last or step_is_due(trainer, batch_idx, every_n_steps)


def step_index(trainer: Trainer) -> int:
    """Index of the optimizer step that ran last, from 0: where Lightning puts its own figures, too."""
    return max(trainer.global_step - 1, 0)
