"""What a data module asks a Trainer, for any rank without its process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def fake_trainer(*, step: int = 0, rank: int = 0, ranks: int = 1, accumulate: int = 2, **more: Any) -> Any:
    return SimpleNamespace(
        global_step=step,
        global_rank=rank,
        world_size=ranks,
        accumulate_grad_batches=accumulate,
        overfit_batches=0.0,
        limit_train_batches=1.0,
        max_steps=100,
        callbacks=[],
        lightning_module=None,
        validating=False,
        **more,
    )
