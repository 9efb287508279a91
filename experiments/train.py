"""Train an experiment, or go on with a run: joins the module, the data, the callbacks and the run's folder."""

from __future__ import annotations

import hashlib
import logging
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichModelSummary
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.jsonl_logger import JsonlLogger
from callbacks.tensorboard_logger import RunTensorBoard
from data_modules.token_pipeline import TokenLoader
from experiments.assemble import Assembly, assemble
from experiments.config import Config, ExperimentConfig, TrainerConfig, plain, read_config, to_yaml
from experiments.own_checkpoint import made_with, misfit, read_own, refuse_changes
from experiments.prepare import prepare_clips
from experiments.roll_call import forget_answers, silent_ranks
from experiments.run_folder import RunFolder
from experiments.slurm import stop_request
from lumos_pl.checkpoints.complete import kept_checkpoints, newest_complete
from lumos_pl.checkpoints.named import LATEST, resolve_latest, resolve_named
from lumos_pl.checkpoints.saving import Checkpointing, DirectCheckpointIO
from lumos_pl.checkpoints.sharded import is_sharded
from lumos_pl.differences import differences
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.fit_loop import ResumableFitLoop
from lumos_pl.models.config import UNPLACED, Placement
from lumos_pl.sharded_strategy import ShardedStrategy
from lumos_pl.stop_request import StopRequest
from lumos_pl.tokenizers.load import TEXT_TOKENIZER_FILE, VISUAL_TOKENIZER_FILE


def train(experiment: str, config: Config) -> RunFolder:
    """Train a new run to its end, or, in a SLURM job that was requeued, go on with the one that it has begun.

    Before the hardware and the data are known to fit, nothing is written but the clips that the
    experiment makes for itself.
    """
    folder = RunFolder.named(experiment, config)
    if folder.is_of_this_job():
        _refuse_other_settings(folder, config)
        return resume(folder.path, [])
    _check_hardware(experiment, config)
    with stop_request() as stop:
        config = with_resolved_start(config)
        prepare_clips(config)
        parts = assemble(config)
        with folder.lock(rank=_rank()):
            if _rank() == 0:
                folder.check_unused()
                folder.note_job()
                folder.write_config(config)
            _fit(folder, config, parts, stop)
    return folder


def resume(path: Path, overrides: Sequence[str], *, allow_changes: bool = False) -> RunFolder:
    """Go on from a run's newest complete checkpoint as if it had never stopped; without any, from the start.

    After the last step that is what comes then: the last validation, what the callbacks judge, the result.
    Overrides become part of the run's configuration.

    Raises:
        CheckpointError: no checkpoint is complete, or (unless `allow_changes`) the data, batches,
            model, vocabulary or optimizer are not the ones it was made with.
    """
    folder = RunFolder(resolve_named(path))
    if not folder.config.is_file():
        raise ConfigError("not a run's folder", file=folder.path, got="no config.yaml", fix="give runs/EXP/NAME")
    config = _with_resolved_tokenizers(read_config(folder.config, overrides))
    _check_hardware(folder.path.parent.name, config)
    with stop_request() as stop, folder.lock(rank=_rank()):
        prepare_clips(config)
        parts = assemble(config)
        checkpoint, start_step = None, 0
        if kept_checkpoints(folder.checkpoints):
            checkpoint, start_step = _find_start(folder, config, None if allow_changes else parts.identity)
        if start_step >= config.trainer.max_steps and folder.has_ended(config.trainer.max_steps):
            if _rank() == 0:
                print(f"this run is at its end: step {start_step} of {config.trainer.max_steps}")
            return folder
        if _rank() == 0:
            folder.write_config(config)
        _fit(folder, config, parts, stop, checkpoint=checkpoint, start_step=start_step)
    return folder


def _refuse_other_settings(folder: RunFolder, config: Config) -> None:
    """Raise ConfigError unless a run was begun with this configuration; what it started from no longer matters."""
    begun, asked = (plain(one) | {"init_from": None} for one in (read_config(folder.config), config))
    for where, made, got in differences(begun, asked):
        if isinstance(got, str) and LATEST in Path(got).parts:
            continue  # it stood for another run then
        raise ConfigError(
            "this run exists, with other settings",
            file=folder.path,
            where=where,
            got=got,
            expected=made,
            fix=f"`lumos resume {folder.path}`, or another run.name",
        )


def _find_start(folder: RunFolder, config: Config, identity: dict[str, Any] | None) -> tuple[Path, int]:
    """The newest complete checkpoint and its step, once it is known to fit.

    Args:
        identity: what must be as it was.
    """
    checkpoint, passed_over = newest_complete(folder.checkpoints)
    if _rank() == 0:
        for line in passed_over:
            print(f"passed over: {line}")
        print(f"resuming from {checkpoint}")
    saved = read_own(checkpoint)
    if identity is not None:
        refuse_changes(checkpoint, made_with(saved["lumos"]), identity)
    if is_sharded(checkpoint) != (config.trainer.strategy == "fsdp2"):
        raise CheckpointError(
            "a sharded checkpoint goes with trainer.strategy=fsdp2, a single file with the others",
            file=checkpoint,
            where="trainer.strategy",
            got=config.trainer.strategy,
            fix="keep the strategy, or start a new run with init_from",
        )
    return checkpoint, saved["global_step"]


def with_resolved_start(config: Config) -> Config:
    """The configuration with what `init_from` and the names of the tokenizers stand for now."""
    if not isinstance(config, ExperimentConfig):
        return config
    if config.init_from is not None:
        source = resolve_named(Path(config.init_from))
        if not source.exists():
            raise CheckpointError("no such checkpoint", file=source, where="init_from")
        config = replace(config, init_from=str(source))
    return _with_resolved_tokenizers(config)


def _with_resolved_tokenizers(config: Config) -> Config:
    """The configuration with `latest` replaced by the run it stands for now: a resume must not take a later one."""
    if not isinstance(config, ExperimentConfig):
        return config

    def now(source: str | None, file: str) -> str | None:
        if source is None or LATEST not in Path(source).parts:
            return source
        return str(resolve_latest(Path(source), holding=file))

    text = now(config.data.text_tokenizer, TEXT_TOKENIZER_FILE)
    return replace(
        config,
        visual_tokenizer=now(config.visual_tokenizer, VISUAL_TOKENIZER_FILE),
        data=replace(config.data, text_tokenizer=text),
    )


def _fit(
    folder: RunFolder,
    config: Config,
    parts: Assembly,
    stop: StopRequest,
    *,
    checkpoint: Path | None = None,
    start_step: int = 0,
) -> None:
    module = parts.build_module(checkpoint is None)
    if _rank() == 0:
        forget_answers(folder.path)
    description = {"config": plain(config), "identity": parts.identity}
    patience = timedelta(seconds=config.trainer.rank_timeout_s)
    checkpointing = Checkpointing(folder.checkpoints, config.checkpoint, description, stop, timeout=patience)
    placement = UNPLACED
    if parts.placed is not None:
        placement = parts.placed.placement
        if _rank() == 0 and (placement.recompute != "none" or not config.trainer.works_on_cpu):
            print(f"settled: {parts.placed.describe()}")
    own = [*parts.callbacks, checkpointing]
    trainer = build_trainer(config, folder, own, placement, start_step=start_step)
    started = time.monotonic()
    try:
        trainer.fit(module, parts.data, ckpt_path=checkpoint, weights_only=True)
    except LumosError:
        raise
    except (RuntimeError, ValueError, KeyError, OSError, EOFError, CheckpointException) as error:
        failure = _failure_beside(error, trainer, config.trainer.rank_timeout_s)
        if failure is None and checkpoint is not None and trainer.train_dataloader is None:  # data come after state
            failure = misfit(error, checkpoint)
        raise failure or error from error
    result = {
        "experiment": folder.path.parent.name,
        "steps": trainer.global_step,
        "seconds": round(time.monotonic() - started, 2),
        "loss": checkpointing.losses(trainer),
        **_summary(trainer),
        "weights_sha256": weights_sha256(module.get_submodule("net")),
    }
    if trainer.is_global_zero:
        folder.write_result(result)
        _log_hyperparameters(trainer, config, result["loss"])


def _failure_beside(error: BaseException, trainer: Trainer, seconds: int) -> LumosError | None:
    """What an error says of another process, a data worker or a rank, that failed or stalls; None: it does not."""
    loader = trainer.train_dataloader
    if isinstance(loader, TokenLoader) and (death := loader.worker_death(error)) is not None:
        return death
    if trainer.world_size > 1 and re.search(r"gloo|NCCL|Timed out|Connection (closed|reset)", str(error)):
        silent = _silent_ranks(trainer)
        which = f"rank {', '.join(map(str, silent))}" if silent else "another rank"
        return LumosError(
            f"{which} failed or stalls",
            where=f"rank {trainer.global_rank}, step {trainer.global_step}",
            got=" ".join(str(error).split())[:200],
            expected=f"every rank within {seconds} s",
            fix="see what the others say, then resume",
        )
    return None


def _silent_ranks(trainer: Trainer) -> list[int]:
    """The ranks that failed or stall; those of them that this one started are ended, or they would stay for ever."""
    first, started = trainer.global_rank + 1, getattr(trainer.strategy.launcher, "procs", [])
    silent = silent_ranks(
        Path(trainer.default_root_dir),
        trainer.global_rank,
        trainer.world_size,
        ended=lambda: [first + i for i, process in enumerate(started) if process.poll() is not None],
    )
    for i, process in enumerate(started):
        if first + i in silent:
            process.kill()
    return silent


def _quieten_libraries() -> None:
    """Leave out what Lightning says of itself and what is meant to be so here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "You have overridden `on_before_batch_transfer`",  # the module hides tokens, whatever the data
        "`isinstance(treespec, LeafSpec)` is deprecated",  # Lightning's own call
        "The `srun` command is available",
        "Precision bf16-mixed is not supported by the model summary",
        "The 'train_dataloader' does not have many workers",
        "The 'val_dataloader' does not have many workers",
        "You're resuming from a checkpoint that ended before the epoch ended",  # the step is the data's whole state
    ):
        warnings.filterwarnings("ignore", re.escape(message))


def build_trainer(
    config: Config, folder: RunFolder, own: list[Callback], placement: Placement, *, start_step: int
) -> Trainer:
    """Lightning's trainer with the project's callbacks; one long epoch, so that progress has an end."""
    settings = config.trainer
    _quieten_libraries()
    tensorboard, metrics = RunTensorBoard(folder.path), JsonlLogger(folder.metrics)
    for logger in tensorboard, metrics:
        logger.rewind(start_step)
    callbacks = [LearningRateMonitor("step"), RichModelSummary(max_depth=2), *own]
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings, placement),
        plugins=[] if settings.strategy == "fsdp2" else [DirectCheckpointIO()],
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
    ResumableFitLoop.put_into(trainer)
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # it would save amid a step, what nothing loads; `stop_request` requeues
    if trainer.is_global_zero and not start_step:
        tensorboard.experiment.add_text("config", f"```yaml\n{to_yaml(config)}```")
    return trainer


def _log_hyperparameters(trainer: Trainer, config: Config, losses: dict[str, float]) -> None:
    """A row of TensorBoard's HParams table: the settings and what came of them."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            ends = {f"end/{name}": value for name, value in losses.items()}
            logger.log_hyperparams(plain(config), ends, trainer.global_step)  # where a longer run leaves them out
            logger.finalize("success")


def _summary(trainer: Trainer) -> dict[str, Any]:
    """What the callbacks measured."""
    summary: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "summary"):
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


def _rank() -> int:
    """This process's rank, before there is a process group too."""
    return _get_rank() or 0


def _strategy(settings: TrainerConfig, placement: Placement = UNPLACED) -> str | Strategy:
    processes, timeout = settings.processes, timedelta(seconds=settings.rank_timeout_s)
    if settings.strategy == "fsdp2":
        return ShardedStrategy(
            n_processes=processes,
            placement=placement,
            cpu_offload=settings.cpu_offload,
            timeout=timeout,
        )
    if settings.strategy == "ddp" or processes > 1:
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)  # else every gradient is there twice
    return "auto"


def _check_hardware(experiment: str, config: Config) -> None:
    settings, visible = config.trainer, torch.cuda.device_count()
    if settings.works_on_cpu:
        return
    if visible == 0:
        raise ConfigError(
            f"{experiment} needs a CUDA GPU and none is visible",
            where="trainer.accelerator",
            fix=f"on a CPU, `make train EXP=debug` runs in seconds; `lumos plan {experiment}` says what it needs",
        )
    if settings.devices > visible:
        raise ConfigError(
            "more devices than GPUs", where="trainer.devices", got=settings.devices, expected=f"1 to {visible}"
        )
