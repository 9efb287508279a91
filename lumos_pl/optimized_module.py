"""What every training has in common: its optimizer, its learning rate, and its stop at numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.errors import NumericError
from lumos_pl.optimizer import OptimizerConfig, apply_settings, build_optimizer


class OptimizedModule(LightningModule):
    """Updates its parameters that require a gradient, clipped; logs `loss/train` and `grad_norm` of every step.

    A subclass calls `note_loss` in its training step.

    Args:
        max_steps: where the learning rate's schedule ends.
    """

    def __init__(self, optimizer: OptimizerConfig, *, max_steps: int) -> None:
        super().__init__()
        self._optimizer_config, self._max_steps = optimizer, max_steps
        self._recent: list[tuple[Tensor, Sequence[str]]] = []  # losses since the last update, with their samples

    def note_loss(self, loss: Tensor, samples: Sequence[str]) -> None:
        """Keep a batch's loss for the log, and the names of its samples in case it is not finite."""
        self._recent.append((loss.detach(), samples))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        optimizer, schedule = build_optimizer(self._optimizer_config, trained, max_steps=self._max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """The configuration decides the optimizer's settings, also when a checkpoint brought others."""
        schedule = cast(LambdaLR, self.lr_schedulers())
        apply_settings(schedule.optimizer, schedule, self._optimizer_config)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip, log the step's loss and norm, and stop before the update if anything is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self._optimizer_config.grad_clip)
        norm = cast(Tensor, norm.full_tensor()) if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            self._stop_on_bad_numbers(norm)
        loss = torch.stack([loss for loss, _ in self._recent]).mean()  # over the batches that were accumulated
        self.log("loss/train", loss, prog_bar=True, sync_dist=True)
        self.log("grad_norm", norm)
        self._recent.clear()

    def _stop_on_bad_numbers(self, norm: Tensor) -> None:
        batches = [(bool(torch.isfinite(loss)), list(samples)) for loss, samples in self._recent]
        if dist.is_initialized():  # the norm is that of all ranks, so that all of them come here
            of_ranks: list[list[tuple[bool, list[str]]]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(of_ranks, batches)
            batches = [batch for rank in of_ranks for batch in rank]
        bad = [samples for is_finite, samples in batches if not is_finite]
        suspects = bad or [samples for _, samples in batches]
        raise NumericError(
            "loss is not finite" if bad else "gradient is not finite",
            where=f"step {self.global_step}, samples {', '.join(name for samples in suspects for name in samples)}",
            got=f"gradient norm {norm.item()}",
            fix="nothing was updated or saved: look at these samples, or resume with a lower optimizer.lr",
        )
