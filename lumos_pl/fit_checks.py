"""Checks before a fit: refuse what would train wrongly, or save checkpoints that nothing can open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lumos_pl.checkpoints.description import shortly
from lumos_pl.checkpoints.opening import PREFIXES
from lumos_pl.errors import CheckpointError, ConfigError, did_you_mean
from lumos_pl.settings.differences import differences
from lumos_pl.settings.plain import is_plain

LOG_NOTHING_ELSE = ("lumos_pl.", "callbacks.", "experiments.", "lightning.")  # these log nothing but LOGS and:
OF_LIGHTNING = ("step", "epoch", "lr-")
LIMITS = "max_steps", "max_epochs", "accumulate_grad_batches", "limit_train_batches"  # a Trainer's, equal on all ranks
SETTINGS_OF_ALL = "optimizer", "mask", "loss"  # not in a run's identity: may change between attempts


def check_fit(
    module: LightningModule, trainer: Trainer, *, precisions: Collection[str], logged: Collection[str]
) -> None:
    """Raise ConfigError for a precision, a hyperparameter or a monitor that cannot work.

    Args:
        logged: the names that a training of the module's class logs.
    """
    if trainer.precision not in precisions:
        raise ConfigError(
            "not for this training",
            where="Trainer(precision)",
            got=trainer.precision,
            expected=" or ".join(precisions),
        )
    data = getattr(trainer, "datamodule", None)
    for where, hparams in ("hparams", module.hparams), ("datamodule.hparams", getattr(data, "hparams", {})):
        others = {name: type(value).__name__ for name, value in hparams.items() if not is_plain(value)}
        if others:
            raise ConfigError(
                "hyperparameters must be plain values, or no checkpoint opens",
                where=f"{where}.{next(iter(others))}",
                got=next(iter(others.values())),
                fix=f"save_hyperparameters(ignore={list(others)}): the settings are saved already",
            )
    _check_monitors(module, trainer.callbacks, logged)  # type: ignore[attr-defined]


def _check_monitors(module: LightningModule, callbacks: Sequence[Callback], logged: Collection[str]) -> None:
    """Raise ConfigError if a callback monitors a name that is known never to be logged."""
    if not all(type(one).__module__.startswith(LOG_NOTHING_ELSE) for one in (module, *callbacks)):
        return
    for callback in callbacks:
        name, is_needed = getattr(callback, "monitor", None), getattr(callback, "strict", True)
        if not (is_needed and isinstance(name, str)) or name.startswith(OF_LIGHTNING):
            continue
        if name.partition("/dataloader_idx_")[0] not in logged:
            raise ConfigError(
                "nothing logs what is monitored",
                where=f"{type(callback).__name__}(monitor)",
                got=name,
                expected=f"one of {', '.join(logged)}",
                fix=did_you_mean(name, logged),
            )


def check_schedules(trainer: Trainer) -> None:
    """Raise ConfigError if a callback added parameters for which the schedule has no learning rate."""
    for one in trainer.lr_scheduler_configs:
        rates, groups = getattr(one.scheduler, "base_lrs", None), one.scheduler.optimizer.param_groups
        if rates is not None and len(rates) != len(groups):
            raise ConfigError(
                "parameters were added for which the schedule has no learning rate",
                where="Trainer(callbacks)",
                got=f"{len(groups)} groups of parameters",
                expected=len(rates),
                fix="give the module configure_optimizers without a schedule, or train all of them from the beginning",
            )


def check_trained(module: LightningModule, frozen: Sequence[str], frozen_then: Sequence[str] | None) -> None:
    """Check the parameters that are trained.

    Args:
        frozen: names of the weights that are not trained.
        frozen_then: the same in the training that is resumed; None: nothing is resumed, or it does not say.
    Raises:
        ConfigError: nothing is trained, or weights are in a precision that a checkpoint does not keep.
        CheckpointError: the optimizer's state is of other parameters, and would be assigned by order alone.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ConfigError("nothing to train", where="module", got="no parameter that requires a gradient")
    for name, parameter in trained.items():
        if name.startswith(PREFIXES["model"]) and parameter.dtype != torch.float32:
            raise ConfigError(
                "weights of another precision",
                where=name,
                got=parameter.dtype,
                expected=torch.float32,
                fix="call module.float(); Trainer(precision) says what is computed in",
            )
    if frozen_then is None or (other := min(set(frozen) ^ set(frozen_then), default=None)) is None:
        return
    got, expected = ("frozen", "trained") if other in frozen else ("trained", "frozen")
    what, fix = "the optimizer's state is of other parameters", "freeze what was frozen then"
    raise CheckpointError(what, where=other, got=got, expected=expected, fix=fix)


def check_ranks_agree(trainer: Trainer, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ConfigError on all ranks if one has other settings: each rank would end up with a model of its own."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    limits = {name: getattr(trainer, name) for name in LIMITS}
    own = {"Trainer": limits, **identity, **{name: settings.get(name) for name in SETTINGS_OF_ALL}}
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own)
    for rank, other in enumerate(of_ranks):
        for where, first, got in differences(of_ranks[0], other):
            raise ConfigError(
                "the ranks were given different settings",
                where=f"rank {rank}, {where}",
                got=shortly(got),
                expected=f"{shortly(first)}, as rank 0",
                fix="start all of them with the same",
            )
