"""What every training has in common: its optimizer, its learning rate, and its stop at numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.devices import Sent
from lumos_pl.errors import NumericError
from lumos_pl.models.parallel import clip_gradients
from lumos_pl.optimizer import OptimizerConfig, apply_settings, build_optimizer, skip_unless_finite


@dataclass(frozen=True)
class _Update:
    """A step whose gradients' norm nobody has looked at yet, and the losses and samples that it is of."""

    step: int
    norm: Sent
    batches: Sequence[tuple[Tensor, Sequence[str]]]


class OptimizedModule(LightningModule):
    """Updates its parameters that require a gradient, clipped; logs `loss/train` and `grad_norm` of every step.

    A subclass calls `note_loss` in its training step. A GPU leaves out an update that is not finite by itself, and the
    run stops one step later, when the number has come to the host: looking at once would leave the GPU without work.
    Before anything is saved it is looked at too.

    Args:
        max_steps: where the learning rate's schedule ends.
    """

    def __init__(self, optimizer: OptimizerConfig, *, max_steps: int) -> None:
        super().__init__()
        self._optimizer_config, self._max_steps = optimizer, max_steps
        self._recent: list[tuple[Tensor, Sequence[str]]] = []  # losses since the last update, with their samples
        self._latest: _Update | None = None

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
        apply_settings(schedule.optimizer, schedule)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip, log the step's loss and norm, and stop before the update if anything is not finite."""
        self._stop_on_bad_numbers()
        norm = clip_gradients(self.parameters(), self._optimizer_config.grad_clip)
        self._latest = _Update(self.global_step, Sent(norm), self._recent)
        if not skip_unless_finite(optimizer, norm):
            self._stop_on_bad_numbers()
        loss = torch.stack([loss for loss, _ in self._recent]).mean()  # over the batches that were accumulated
        if dist.is_initialized():  # not sync_dist=True: Lightning reduces behind a barrier, in which the host waits
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.log("loss/train", loss)  # not prog_bar=True: Lightning would read the number in every step
        self.log("grad_norm", norm)
        self._recent = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_on_bad_numbers()

    def on_train_end(self) -> None:
        self._stop_on_bad_numbers()

    def _stop_on_bad_numbers(self) -> None:
        """Raise NumericError if the latest update was not finite: of the norm of all ranks, so on all of them."""
        latest, self._latest = self._latest, None
        if latest is None or math.isfinite(norm := latest.norm.value()):
            return
        batches = [(bool(torch.isfinite(loss)), list(samples)) for loss, samples in latest.batches]
        if dist.is_initialized():
            of_ranks: list[list[tuple[bool, list[str]]]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(of_ranks, batches)
            batches = [batch for rank in of_ranks for batch in rank]
        bad = [samples for is_finite, samples in batches if not is_finite]
        suspects = bad or [samples for _, samples in batches]
        raise NumericError(
            "loss is not finite" if bad else "gradient is not finite",
            where=f"step {latest.step}, samples {', '.join(name for samples in suspects for name in samples)}",
            got=f"gradient norm {norm}",
            fix="nothing was updated or saved: look at these samples, or resume with a lower optimizer.lr",
        )
