"""A module that a Trainer drives, without the Trainer's run."""

from __future__ import annotations

from lightning import Trainer

from lumos_pl.optimized_module import OptimizedModule

TRAINERS: list[Trainer] = []  # a module holds its own weakly


def driven(module: OptimizedModule) -> None:
    """Let a Trainer be its own, before its first step."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    TRAINERS.append(trainer)
    module.trainer = trainer
    trainer.strategy.connect(module)
