"""The files that an adapter's training produces."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.steps import run_folder
from lumos_pl.adapters.stored import write_adapter
from lumos_pl.adapters.training import whole_adapter
from lumos_pl.module import LumosModule

ADAPTER = "adapter"  # the folder's name in a run's folder


class AdapterFile(Callback):
    """Writes the adapter in PEFT's layout into the run's folder `adapter`, with each checkpoint.

    If the training keeps a running average, that goes into `adapter_ema`. The summary names the folder.
    """

    def __init__(self) -> None:
        self._summary: dict[str, Any] = {}

    def summary(self) -> dict[str, Any]:
        return self._summary

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        module = cast(LumosModule, pl_module)
        folder = run_folder(trainer)
        named = {ADAPTER: module.net, f"{ADAPTER}_ema": module.ema}
        for name, net in named.items():
            if net is None:
                continue
            tensors = whole_adapter(net)  # on all ranks: a sharded one is gathered
            if trainer.is_global_zero:
                write_adapter(
                    folder / name,
                    module.adapter_by_name(),
                    tensors,
                    visual_offset=module.layout.visual_offset,
                    base={"named": module.init_from, "weights": module.base_weights},
                    step=trainer.global_step,
                    root=folder,
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._summary = {"adapter": str(run_folder(trainer) / ADAPTER)}
