"""Train an experiment, or go on with a run: joins the module, the data, the callbacks and the run's folder."""

from __future__ import annotations

import hashlib
import logging
import re
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichModelSummary
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn

from callbacks.build import build_callbacks
from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.jsonl_logger import JsonlLogger
from callbacks.throughput import Throughput
from data_modules.token_data import TokenDataModule
from experiments.config import ExperimentConfig, TrainerConfig, plain, read_config, to_yaml
from experiments.run_folder import RunFolder
from lumos_pl.checkpoints.complete import check_digest, newest_complete, read_checkpoint
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.checkpoints.saving import Checkpointing
from lumos_pl.checkpoints.sharded import check_pickles, is_sharded
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.module import LumosModule, TrainingConfig


def train(experiment: str, config: ExperimentConfig) -> RunFolder:
    """Train a new run to its end."""
    _check_hardware(experiment, config)
    folder = RunFolder.create(experiment, config, rank=_get_rank() or 0)
    _run(folder, config, checkpoint=None, allow_changes=False)
    return folder


def resume(path: Path, overrides: list[str], *, allow_changes: bool = False) -> RunFolder:
    """Go on from a run's newest complete checkpoint as if it had never stopped.

    Raises:
        CheckpointError: there is none, or (unless `allow_changes`) the data, batches, model or
            vocabulary are not the ones it was made with.
    """
    folder = RunFolder(path.resolve())  # what `latest` points at now
    if not folder.config.is_file():
        raise ConfigError(
            "not a run's folder", file=path, expected="a folder with config.yaml", fix="give runs/EXP/NAME"
        )
    config = read_config(folder.config, overrides)
    _check_hardware(folder.path.parent.name, config)
    checkpoint, passed_over = newest_complete(folder.checkpoints)
    if not _get_rank():
        for line in passed_over:
            print(f"passed over: {line}")
        print(f"resuming from {checkpoint}")
    _run(folder, config, checkpoint=checkpoint, allow_changes=allow_changes)
    return folder


def _run(folder: RunFolder, config: ExperimentConfig, *, checkpoint: Path | None, allow_changes: bool) -> None:
    layout = config.layout.build()
    model = config.model.build(layout)
    data = TokenDataModule(
        config.data, layout, seed=config.seed, accumulate=config.trainer.accumulate, max_length=model.max_length
    )
    data.setup("fit")
    identity = {
        "data": data.fingerprint(),
        "layout": asdict(config.layout),
        "model": asdict(model) | {"strides": list(model.strides)},
        "seed": config.seed,
        "batches_per_step": config.trainer.accumulate * config.trainer.devices * config.trainer.num_nodes,
    }
    start_step = 0
    if checkpoint is not None:
        saved = _description(checkpoint)
        start_step = int(saved["global_step"])
        if not allow_changes:
            _refuse_changes(checkpoint, saved["lumos"]["identity"], identity)

    module = LumosModule(
        model,
        layout,
        TrainingConfig(
            mask=config.mask,
            loss=config.loss,
            optimizer=config.optimizer,
            seed=config.seed,
            max_steps=config.trainer.max_steps,
            activation_checkpointing=config.model.activation_checkpointing,
        ),
        load_initial=None if config.init_from is None else partial(load_initial_weights, source=Path(config.init_from)),
    )
    saving = Checkpointing(folder.checkpoints, config.checkpoint, {"config": plain(config), "identity": identity})
    measuring = build_callbacks(config.callbacks)
    trainer = build_trainer(config, folder, [*measuring, saving], start_step=start_step)
    with folder.lock(rank=trainer.global_rank):
        started = time.monotonic()
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        assert module.net is not None
        result = {
            "experiment": folder.path.parent.name,
            "steps": trainer.global_step,
            "seconds": round(time.monotonic() - started, 2),
            **_summary(trainer),
            "weights_sha256": weights_sha256(module.net),
        }
        if trainer.is_global_zero:
            folder.write_result(result)


def _quieten_libraries() -> None:
    """Leave out what Lightning says of itself and what is meant to be so here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "You have overridden `on_before_batch_transfer`",  # the module hides tokens, whatever the data
        "`isinstance(treespec, LeafSpec)` is deprecated",  # Lightning's own call
        "The `srun` command is available",
        "The 'train_dataloader' does not have many workers",
        "The 'val_dataloader' does not have many workers",
        "You're resuming from a checkpoint that ended before the epoch ended",  # the step is the data's whole state
    ):
        warnings.filterwarnings("ignore", re.escape(message))


def build_trainer(config: ExperimentConfig, folder: RunFolder, own: list[Callback], *, start_step: int) -> Trainer:
    """Lightning's trainer with the project's callbacks; one long epoch, so that progress has an end."""
    settings = config.trainer
    _quieten_libraries()
    tensorboard = TensorBoardLogger(
        folder.path, name="", version="", default_hp_metric=False, purge_step=start_step or None
    )
    metrics = JsonlLogger(folder.metrics)
    metrics.rewind(start_step)
    callbacks = [LearningRateMonitor("step"), RichModelSummary(max_depth=2), *own]
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings),
        precision=settings.precision,
        max_steps=settings.max_steps,
        max_epochs=-1,
        limit_train_batches=settings.max_steps * settings.accumulate,
        accumulate_grad_batches=settings.accumulate,
        check_val_every_n_epoch=None,
        val_check_interval=settings.val_every_n_steps * settings.accumulate or None,
        limit_val_batches=None if settings.val_every_n_steps else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.callbacks.log_every_n_steps,
        logger=[tensorboard, metrics],
        callbacks=callbacks,
        enable_progress_bar=config.callbacks.progress_bar,
        use_distributed_sampler=False,
        default_root_dir=folder.path,
    )
    if trainer.is_global_zero and not start_step:
        tensorboard.log_hyperparams(plain(config))
        tensorboard.experiment.add_text("config", f"```yaml\n{to_yaml(config)}```")
    return trainer


def _summary(trainer: Trainer) -> dict[str, Any]:
    """Losses and speed at the end of a run."""
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("loss/")}
    summary: dict[str, Any] = {"loss": losses}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        match callback:
            case FrameLossBalance():
                summary["frame_loss"] = callback.summary()
            case Throughput():
                summary |= callback.summary()
    return summary


def weights_sha256(net: nn.Module) -> str:
    """Digest of all parameters in the order of their names, each whole even if sharded."""
    digest = hashlib.sha256()
    for name, parameter in sorted(net.named_parameters()):
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        digest.update(name.encode())
        digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _strategy(settings: TrainerConfig) -> str | Strategy:
    if settings.strategy != "fsdp2":
        return settings.strategy
    # Lightning's default would split tensors within a node, which nothing here does.
    return ModelParallelStrategy(data_parallel_size=settings.devices * settings.num_nodes, tensor_parallel_size=1)


def _check_hardware(experiment: str, config: ExperimentConfig) -> None:
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            f"{experiment} needs a CUDA GPU and none is visible",
            where="trainer.accelerator",
            fix="on a CPU, `make train EXP=debug` runs in seconds",
        )


def _description(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint says of itself."""
    check_digest(checkpoint)
    if is_sharded(checkpoint):
        check_pickles(checkpoint)
    content = read_checkpoint(checkpoint)
    if not isinstance(content.get("lumos"), dict) or "global_step" not in content:
        raise CheckpointError("not a checkpoint of this project", file=checkpoint, where="lumos", got="nothing")
    return content


def _refuse_changes(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    for key in sorted(saved.keys() | now.keys()):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _refuse_changes(checkpoint, old, new, f"{prefix}{key}.")
        elif old != new:
            raise CheckpointError(
                "the run was made with something else",
                file=checkpoint,
                where=f"{prefix}{key}",
                got=new,
                expected=old,
                fix="restore it, or add --allow-changes to go on all the same",
            )
