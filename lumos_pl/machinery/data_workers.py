"""What a Trainer's loaders say of their worker processes."""

from __future__ import annotations

from lightning import Trainer

from lumos_pl.errors import LumosError


def worker_death(trainer: Trainer, error: BaseException) -> LumosError | None:
    """The death of a data worker that an error came of, which torch tells of wherever the training is; None: none died.

    Any loader may know: it has `worker_death(error)`, as `TokenLoader` has.
    """
    validation = trainer.val_dataloaders
    loaders = [trainer.train_dataloader, *(validation if isinstance(validation, list | tuple) else [validation])]
    deaths = (loader.worker_death(error) for loader in loaders if hasattr(loader, "worker_death"))
    return next((death for death in deaths if death is not None), None)
