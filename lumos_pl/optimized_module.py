"""What every training has in common: its optimizer, learning rate, checkpoints, and its stop at non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.checkpoints.contents import FORMAT, OF_ITS_OWN, Lumos, Training
from lumos_pl.checkpoints.description import made_with, refuse_changes, shortly
from lumos_pl.checkpoints.opening import PREFIXES, check_content, open_checkpoint
from lumos_pl.checkpoints.plain_content import check_plain
from lumos_pl.errors import CheckpointError, ConfigError, NumericError
from lumos_pl.fit_checks import check_fit, check_ranks_agree, check_schedules, check_trained
from lumos_pl.machinery.devices import Sent, to_device
from lumos_pl.machinery.lightning_private.loops import begin_at_a_step
from lumos_pl.models.parallel import clip_gradients
from lumos_pl.optimizer import OptimizerConfig, apply_settings, build_optimizer, skip_unless_finite
from lumos_pl.settings.differences import differences


@dataclass(frozen=True)
class _BatchLoss:
    """The loss of one batch of the current step.

    Args:
        n_targets: how many targets the loss is the mean over.
        samples: their names, to report if the loss is not finite.
    """

    loss: Tensor
    n_targets: int
    samples: Sequence[str]


@dataclass(frozen=True)
class _Update:
    """An update whose numbers have not been checked yet, and the batches it was made of.

    Args:
        numbers: the norm of the gradients and the loss, over all ranks; only the norm if no loss was noted.
    """

    step: int
    numbers: Sent
    batches: Sequence[_BatchLoss]


class OptimizedModule(LightningModule):
    """Updates the parameters that require a gradient, with clipping; logs `loss/train` and `grad_norm` of every step.

    A subclass returns `loss_to_minimize(...)` from its training step. A GPU skips a non-finite update by itself, and
    the run stops one step later, when the number has reached the host: waiting for it at once would leave the GPU
    idle. It is also checked before anything is saved.

    A checkpoint says what the training was made with, and resuming it with another model, data set, seed or batch is
    refused, whichever Trainer does it.

    Args:
        mean_over: what a step's loss is the mean over: `batches`, where each batch's own mean counts equally, as in the
            release; or `targets`, all those of the step, whatever batch or rank they are in.

    Attributes:
        LOGS: the names that a training of this class logs by itself, which a callback may monitor.
        init_from: where the first weights come from, if from anywhere; a resumed training does not need it.
        allow_changes: resume even if the training was made with something else.
    """

    LOGS: tuple[str, ...] = ("loss/train", "grad_norm")

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Run a user's hooks in addition to those here, whether or not they call super: Lightning's are empty, so few
        people do, and without ours a checkpoint would not open or a training would go on differently."""
        super().__init_subclass__(**arguments)
        if not cls.__module__.startswith("lumos_pl."):
            for name in HOOKS & vars(cls).keys():
                setattr(cls, name, _beside(cls, vars(cls)[name]))

    def __init__(self, optimizer: OptimizerConfig, *, seed: int, mean_over: str = "batches") -> None:
        super().__init__()
        self.optimizer_config, self.seed, self.mean_over = optimizer, seed, mean_over
        self.init_from: str | None = None
        self.allow_changes = False
        self._recent: list[_BatchLoss] = []  # of the current step
        self._latest: _Update | None = None
        self._end: int | None = None  # of the current fit, in steps
        self._frozen_then: list[str] | None = None  # in the training that is resumed
        self._validated: tuple[Sequence[str], Sent] | None = None  # names and losses, not yet checked

    # -- the update ----------------------------------------------------------------------------

    def loss_to_minimize(self, loss: Tensor, n_targets: int, samples: Sequence[str]) -> Tensor:
        """What a training step returns for the mean loss of a batch; it is also noted for the log and the check.

        Lightning averages what the batches of a step return, and the ranks average their gradients. For the mean over
        targets each batch therefore returns its sum, scaled by a constant; `configure_gradient_clipping` takes the
        constant out again and divides by the number of all targets, which is only known then.
        """
        if not self._is_the_trainers:  # used in a custom loop, another module, or manual optimization
            return loss
        self._recent.append(_BatchLoss(loss.detach(), n_targets, samples))
        return loss if self.mean_over == "batches" else loss * (n_targets / TARGETS_OF_A_BATCH)

    @property
    def _is_the_trainers(self) -> bool:
        return self._trainer is not None and self.trainer.lightning_module is self and self.automatic_optimization

    def on_fit_start(self) -> None:
        """Raise ConfigError for what would train wrongly, or save checkpoints that nothing can open."""
        check_fit(self, self.trainer, precisions=PRECISIONS, logged=self.LOGS)
        check_trained(self, self._frozen(), self._frozen_then)
        check_ranks_agree(self.trainer, self._identity_of_run(0), self.hparams)

    def _frozen(self) -> list[str]:
        """Names of the weights in a checkpoint that are not trained."""
        kept, prefix = self.saved_tensors() or {}, PREFIXES["model"]
        named = self.named_parameters()
        return [name for name, one in named if name in kept and name.startswith(prefix) and not one.requires_grad]

    def on_validation_start(self) -> None:
        self._check_batches_pass()

    def on_test_start(self) -> None:
        self._check_batches_pass()

    def _check_batches_pass(self) -> None:
        """Raise ConfigError if Lightning would cast batches, which hold integers, to the precision."""
        got = self.trainer.precision
        if got.endswith("-true") and got not in PRECISIONS:
            raise ConfigError(
                "not for this module", where="Trainer(precision)", got=got, expected=" or ".join(PRECISIONS)
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        optimizer, schedule = build_optimizer(self.optimizer_config, trained, max_steps=self._end_of_schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps_in_all(self) -> int | None:
        """The step at which the Trainer's limits, or epochs of finite data, end the training; None: never."""
        trainer = self._trainer  # None in a custom loop
        if trainer is None:
            return None
        ends = [trainer.max_steps] if trainer.max_steps > 0 else []
        epochs = trainer.max_epochs or 0
        if epochs > 0 and isinstance(trainer.limit_train_batches, int):
            ends.append(epochs * math.ceil(trainer.limit_train_batches / trainer.accumulate_grad_batches))
        elif epochs > 0 and math.isfinite(steps := trainer.estimated_stepping_batches) and steps > 0:
            ends.append(int(steps))
        return min(ends, default=None)

    def _end_of_schedule(self) -> int:
        if self.optimizer_config.schedule == "constant":
            return 0  # it never asks for the end
        if (end := self._steps_in_all()) is not None:
            return end
        raise ConfigError(
            "the learning rate's schedule has no end",
            where="optimizer.schedule",
            got=self.optimizer_config.schedule,
            fix="give the Trainer max_steps, or take the schedule constant",
        )

    @property
    def progress(self) -> float:
        """Share of the training's steps that are done, in [0, 1]; 0 if the training has no end."""
        trainer = self._trainer
        if trainer is None or not (end := trainer.max_steps if trainer.max_steps > 0 else self._end):
            return 0.0
        return min(1.0, trainer.global_step / end)

    def on_train_epoch_start(self) -> None:
        check_schedules(self.trainer)

    def on_train_start(self) -> None:
        """The configuration decides the optimizer's settings, even if a checkpoint restored others."""
        self._recent, self._latest, self._validated = [], None, None  # a fit may have ended in the middle of a step
        data = getattr(self.trainer, "datamodule", None)
        if data is None and getattr(self.trainer.train_dataloader, "is_endless", False):
            what, fix = "a stream without its data module, which places it", "give fit(module, datamodule=data)"
            raise ConfigError(what, where="fit", fix=fix)
        self._end = self._steps_in_all()
        if self._is_configured():
            schedule = self.lr_schedulers()
            assert isinstance(schedule, LambdaLR)
            apply_settings(schedule.optimizer, schedule)

    def _is_configured(self) -> bool:
        """Whether the optimizer is the configured one, not a subclass's or a callback's."""
        optimizers, schedules = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        return (
            [type(one.scheduler) for one in schedules] == [LambdaLR]
            and schedules[0].scheduler.optimizer is optimizers[0]
            and len(getattr(optimizers[0], "configured", ())) == len(optimizers[0].param_groups)
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, log the step's loss and norm, and stop before the update if anything is not finite.

        A Trainer's own `gradient_clip_val` takes precedence over `optimizer.grad_clip`; 0 means no limit in Lightning.
        """
        self._stop_on_bad_numbers()
        loss, scale = self._mean_loss() if self._recent else (None, None)  # a custom training step notes none
        most = self.optimizer_config.grad_clip if gradient_clip_val is None else float(gradient_clip_val) or math.inf
        norm = clip_gradients(self.parameters(), most, scale=scale, by_value=gradient_clip_algorithm == "value")
        self._latest = _Update(self.global_step, Sent(norm, *([] if loss is None else [loss])), self._recent)
        # A loss may be infinite while its gradients are finite: 0 * loss is 0 if it is finite, and NaN otherwise.
        if not skip_unless_finite(optimizer, norm if loss is None else norm + 0 * loss):
            self._stop_on_bad_numbers()
        if loss is not None:
            self.log("loss/train", loss)  # not prog_bar=True: Lightning would sync with the GPU in every step
        self.log("grad_norm", norm)
        self._recent = []

    def _mean_loss(self) -> tuple[Tensor, Tensor | None]:
        """The step's loss over all its batches and ranks, and the factor its gradients still need."""
        losses = torch.stack([batch.loss for batch in self._recent])
        # Not by self.log(sync_dist=True): Lightning reduces behind a barrier, which blocks the host.
        if self.mean_over == "batches":
            loss = losses.mean()
            if dist.is_initialized():
                dist.all_reduce(loss)
                loss /= dist.get_world_size()
            return loss, None
        counts = torch.tensor([batch.n_targets for batch in self._recent], dtype=losses.dtype)
        targets = to_device(counts, losses.device)
        total = torch.stack([(losses * targets).sum(), targets.sum()])
        n_ranks = 1
        if dist.is_initialized():
            dist.all_reduce(total)
            n_ranks = dist.get_world_size()
        n_targets = total[1].clamp(min=1)
        n_batches = self.trainer.accumulate_grad_batches * n_ranks  # Lightning and the ranks divided by this
        return total[0] / n_targets, TARGETS_OF_A_BATCH * n_batches / n_targets

    def on_train_end(self) -> None:
        self._stop_on_bad_numbers()

    def on_validation_end(self) -> None:
        losses = {name: loss for name, loss in self.trainer.callback_metrics.items() if name.startswith("loss/val")}
        if losses and self.trainer.state.fn == TrainerFn.FITTING:
            self._validated = tuple(losses), Sent(*losses.values())

    def _warn_of_validation(self) -> None:
        """Warn of a non-finite validation loss: it did not change the weights, so the training goes on."""
        (names, losses), self._validated = self._validated or ((), None), None
        for name, loss in zip(names, losses.values() if losses else [], strict=True):
            if not math.isfinite(loss):
                warning = f"{name} is {loss} before step {self.global_step}: see the validation data; training goes on"
                rank_zero_warn(warning, category=RuntimeWarning)

    def _stop_on_bad_numbers(self) -> None:
        """Raise NumericError if the latest update was not finite. The numbers are over all ranks, so all raise."""
        self._warn_of_validation()
        latest, self._latest = self._latest, None
        if latest is None or all(map(math.isfinite, numbers := latest.numbers.values())):
            return
        batches = [(bool(torch.isfinite(batch.loss)), list(batch.samples)) for batch in latest.batches]
        if dist.is_initialized():
            of_ranks: list[list[tuple[bool, list[str]]]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(of_ranks, batches)
            batches = [batch for rank in of_ranks for batch in rank]
        bad = [samples for is_finite, samples in batches if not is_finite]
        suspects = bad or [samples for _, samples in batches]
        shown = zip(("gradient norm", "loss"), numbers, strict=False)
        raise NumericError(
            "loss is not finite" if bad else "gradient is not finite",
            where=f"step {latest.step}, samples {', '.join(name for samples in suspects for name in samples)}",
            got=", ".join(f"{name} {number:g}" for name, number in shown),
            fix="nothing was updated or saved: look at these samples, or resume with a lower optimizer.lr",
        )

    # -- what is saved -------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on from, as plain values."""
        optimizer = {"kind": self.optimizer_config.kind, "ema": self.optimizer_config.ema_decay > 0}
        return {"seed": self.seed, "optimizer": optimizer}

    def _identity_of_run(self, step: int) -> dict[str, Any]:
        trainer = self.trainer
        data = getattr(trainer, "datamodule", None)
        return identity_of_run(self, data, trainer.accumulate_grad_batches * trainer.world_size, step)

    def saved_tensors(self) -> Mapping[str, Tensor] | None:
        """The weights that a checkpoint of the training holds, by name; None if not known."""
        return None

    def description(self) -> dict[str, Any]:
        """What else a checkpoint says of the training: its settings, in the form of an experiment's."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_on_bad_numbers()
        own = checkpoint.setdefault("lumos", {})  # `Checkpointing` notes a run's whole configuration here
        own["format"] = FORMAT
        own["identity"] = self._identity_of_run(self.trainer.global_step)
        own["frozen"] = self._frozen()
        if self.trainer.optimizers and not self._is_configured():
            own["identity"]["optimizer"]["kind"] = OF_ITS_OWN
        own.setdefault("config", self.description())
        what, fix = "what was to be saved could not be read back", "give plain values or tensors to its checkpoint"
        check_plain(checkpoint, what=what, error=ConfigError, fix=fix)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError for a checkpoint that is incomplete, or of another training."""
        trainer = self._trainer
        if trainer is None:  # `load_from_checkpoint`, which checks everything itself
            return
        file = Path(str(trainer.ckpt_path))
        is_whole = "state_dict" in checkpoint  # FSDP2 reads it by itself, from a folder's files
        parts = (check_content(checkpoint, file) if is_whole else open_checkpoint(file)).parts
        if not trainer.training:  # only weights are loaded
            self._check_same_module(parts.lumos, file)
            return
        if not isinstance(parts, Training):
            raise CheckpointError("weights alone, and no training to go on with", file=file)
        self._frozen_then = parts.lumos.frozen
        saved = made_with(parts.lumos)
        go_on_as(getattr(trainer, "datamodule", None), saved)
        if not self.allow_changes:
            refuse_changes(saved, self._identity_of_run(parts.global_step))
        accumulate = trainer.accumulate_grad_batches if self.automatic_optimization else None
        limit = None if trainer.max_epochs == -1 else trainer.limit_train_batches
        begin_at_a_step(
            checkpoint["loops"]["fit_loop"],
            step=parts.global_step,
            accumulate=accumulate,
            limit=limit,
            ends=not hasattr(getattr(trainer, "datamodule", None), "identity_at"),
        )

    def _check_same_module(self, lumos: Lumos, file: Path) -> None:
        """Raise CheckpointError if a checkpoint's weights do not fit this module, or mean something else in it."""
        saved, own = made_with(lumos), self.identity()
        made, asked = ({name: one.get(name) for name in OF_THE_WEIGHTS} for one in (saved, own))
        made["ema"], asked["ema"] = ((one.get("optimizer") or own["optimizer"])["ema"] for one in (saved, own))
        for where, then, now in differences(made, asked):
            what, fix = "the weights are of another module", "take LumosModule.load_from_checkpoint(FILE)"
            raise CheckpointError(what, file=file, where=where, got=shortly(then), expected=shortly(now), fix=fix)


HOOKS = {  # each may run twice
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_save_checkpoint",
    "on_load_checkpoint",
}


def _beside(kind: type[OptimizedModule], own: Callable[..., None]) -> Callable[..., None]:
    """Wrap a hook to run the base's too: first, or last when saving, so that it checks what the hook added."""

    @wraps(own)
    def hook(module: OptimizedModule, *given: Any) -> None:
        both = [getattr(super(kind, module), own.__name__), partial(own, module)]
        for one in reversed(both) if own.__name__ == "on_save_checkpoint" else both:
            one(*given)

    return hook


OF_THE_WEIGHTS = "layout", "model", "tokenizer", "adapter"  # the parts of an identity that say what weights mean
PRECISIONS = ("32-true", "bf16-mixed")  # fp16's loss scale would distort clipping, and weights in bf16 learn less
TARGETS_OF_A_BATCH = 1024  # a power of two near the real number: sums then give gradients of about a mean's size


def go_on_as(data: object, saved: Mapping[str, Any]) -> None:
    """Let data that can do so take over, from the identity of a resumed run, what was fixed when that run began."""
    if hasattr(data, "go_on_as") and isinstance(recorded := saved.get("data"), dict):
        data.go_on_as(recorded)


def identity_of_run(module: OptimizedModule, data: object, batches_per_step: int, step: int) -> dict[str, Any]:
    """Everything that decides how a training goes on from a step: the module, its data, and micro-batches per step."""
    of_data: dict[str, Any] = {}
    if hasattr(data, "identity_at"):
        of_data = {"data": data.identity_at(step)}
    elif hasattr(data, "identity"):
        of_data = {"data": data.identity()}
    return {**of_data, **module.identity(), "batches_per_step": batches_per_step}
