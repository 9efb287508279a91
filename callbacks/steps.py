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


def step_index(trainer: Trainer) -> int:
    """Index of the optimizer step that ran last, from 0: where Lightning puts its own figures, too."""
    return max(trainer.global_step - 1, 0)
