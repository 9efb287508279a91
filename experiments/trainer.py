"""Lightning's trainer for a run: what the run decides, and what the configuration adds."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, RichModelSummary
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from callbacks.jsonl_logger import JsonlLogger
from callbacks.logs_once import LogsOnce
from experiments.config import Config, plain, to_yaml
from experiments.loggers import build_loggers, import_loggers
from experiments.own_parts import CLASS_PATH, INIT_ARGS, build_part, import_class
from experiments.roll_call import Leaves, RankWatch
from experiments.run_folder import RunFolder
from experiments.trainer_config import TrainerConfig
from lumos_pl.checkpoints.saves import DirectCheckpointIO
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private.loops import ResumableFitLoop
from lumos_pl.machinery.lightning_private.ranks import (
    RanksMeet,
    WatchedDDP,
    launching_environment,
    leave_requeueing_to_the_run,
    process_rank,
)
from lumos_pl.machinery.progress import Heartbeat
from lumos_pl.machinery.watch import Watch
from lumos_pl.models.config import UNPLACED, Placement
from lumos_pl.pipeline import Precision
from lumos_pl.settings.kinds import ClassPath
from lumos_pl.sharded_strategy import ShardedStrategy

PROFILERS = {
    "simple": "lightning.pytorch.profilers.SimpleProfiler",
    "advanced": "lightning.pytorch.profilers.AdvancedProfiler",
    "pytorch": "callbacks.profiling.WindowProfiler",
}
PROFILE = "profile"  # beginning of the files that a profiler leaves in the run's folder


def import_classes(config: Config) -> None:
    """Import the classes that a configuration names and refuse what is of another kind, before anything is written."""
    import_loggers(config.loggers)
    for place, part in enumerate(config.callbacks.extra):
        where = f"callbacks.extra[{place}]"
        if issubclass(import_class(part, Callback, where), Checkpoint):
            fix = "say how often, and how many to keep, in `checkpoint`"
            raise ConfigError("a run keeps its own checkpoints", where=where, got=part.class_path, fix=fix)
    if (profiler := config.trainer.lightning.get("profiler")) is not None:
        import_class(_profiler_class(profiler), Profiler, "trainer.profiler")


def build_trainer(
    config: Config,
    folder: RunFolder,
    own: Sequence[Callback],
    placement: Placement = UNPLACED,
    *,
    watch: Watch | None = None,
) -> Trainer:
    """Lightning's trainer with the project's callbacks; one long epoch, so that progress has an end.

    Raises:
        ConfigError: Lightning refuses an argument, or a logger, callback or profiler cannot be made.
    """
    settings = config.trainer
    _quieten_libraries()
    loggers = [*build_loggers(config.loggers, folder.path), JsonlLogger(folder.metrics)]
    extra = [
        build_part(part, Callback, f"callbacks.extra[{place}]") for place, part in enumerate(config.callbacks.extra)
    ]
    added = _added_arguments(settings, folder.path)
    summary = [RichModelSummary(max_depth=2)] if added.get("enable_model_summary", True) else []
    try:
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=build_strategy(settings, placement, RankWatch(folder.path), watch),
            plugins=_plugins(settings),
            precision=cast(Precision, settings.precision),
            max_steps=settings.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            check_val_every_n_epoch=None,
            val_check_interval=settings.val_every_n_steps * settings.accumulate or None,
            log_every_n_steps=config.callbacks.log_every_n_steps,
            enable_progress_bar=config.callbacks.progress_bar,
            logger=loggers,
            callbacks=[Heartbeat(), Leaves(), LearningRateMonitor("step"), *summary, *extra, *own],
            use_distributed_sampler=False,
            default_root_dir=folder.path,
            **added,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise refused_by_lightning(error) from error
    if not settings.val_every_n_steps:
        trainer.limit_val_batches = 0  # whatever Lightning makes of overfit_batches
    ResumableFitLoop.put_into(trainer)
    leave_requeueing_to_the_run(trainer)  # `stop_request` requeues
    return trainer


def begin_logging(trainer: Trainer, config: Config, start_step: int) -> None:
    """Have the loggers go on from a step: what was logged of later ones is done again."""
    for logger in trainer.loggers:
        if isinstance(logger, LogsOnce) and not config.trainer.is_dry:
            logger.rewind(start_step)
    if trainer.is_global_zero and not start_step:
        _log_settings(trainer, config)


def _plugins(settings: TrainerConfig) -> list[Any]:
    """How checkpoints are written, and what started this process, where Lightning would take it for another start."""
    environment = launching_environment() if settings.num_nodes == 1 else None
    return [
        *([] if settings.strategy == "fsdp2" else [DirectCheckpointIO()]),
        *([] if environment is None else [environment]),
    ]


def refused_by_lightning(error: Exception) -> ConfigError:
    """The line for what Lightning does not take."""
    return ConfigError("Lightning refuses the trainer's settings", where="trainer", got=" ".join(str(error).split()))


def _added_arguments(settings: TrainerConfig, folder: Path) -> dict[str, Any]:
    """The arguments that the configuration adds or changes; null is Lightning's own default."""
    added: dict[str, Any] = {"num_sanity_val_steps": 0, "limit_train_batches": settings.max_steps * settings.accumulate}
    added |= {name: value for name, value in settings.lightning.items() if value is not None}
    if "profiler" in added:
        part = _profiler_class(added["profiler"])
        # Lightning adds the rank within the node to the name.
        name = PROFILE if settings.num_nodes == 1 else f"{PROFILE}-node-{process_rank() // settings.devices}"
        added["profiler"] = build_part(part, Profiler, "trainer.profiler", dirpath=str(folder), filename=name)
    return added


def _profiler_class(asked: str | Mapping[str, Any]) -> ClassPath:
    if isinstance(asked, str):
        if asked not in PROFILERS:
            known = f"one of {', '.join(PROFILERS)}, or class_path and init_args"
            raise ConfigError("unknown profiler", where="trainer.profiler", got=asked, expected=known)
        return ClassPath(class_path=PROFILERS[asked])
    return ClassPath(class_path=str(asked[CLASS_PATH]), init_args=dict(asked.get(INIT_ARGS) or {}))


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
        "Total length of `list` across ranks is zero",  # nothing is validated, which is said where it is decided
        "You're resuming from a checkpoint that ended before the epoch ended",  # the step is the data's whole state
    ):
        warnings.filterwarnings("ignore", re.escape(message))


def build_strategy(
    settings: TrainerConfig, placement: Placement, started: RankWatch, watch: Watch | None
) -> str | Strategy:
    """How the processes of a run share its work; `started` is told of those that it starts, `watch` once they met."""
    processes, timeout = settings.processes, settings.backend_timeout
    if settings.strategy == "fsdp2":
        strategy: RanksMeet = ShardedStrategy(
            n_processes=processes, placement=placement, cpu_offload=settings.cpu_offload, timeout=timeout
        )
    elif settings.strategy == "ddp" or processes > 1:
        strategy = WatchedDDP(timeout=timeout, gradient_as_bucket_view=True)  # else every gradient is there twice
    else:
        return "auto"
    strategy.patience = timedelta(seconds=settings.start_timeout_s)
    strategy.on_start, strategy.on_wait = started.begin, started.check
    if watch is not None:
        strategy.on_meet = watch.meet
    return strategy


def _log_settings(trainer: Trainer, config: Config) -> None:
    """The configuration as each logger shows it: a page of TensorBoard's, a table of the others'."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("config", f"```yaml\n{to_yaml(config)}```")
        else:
            logger.log_hyperparams(plain(config))


def log_hyperparameters(trainer: Trainer, config: Config, losses: Mapping[str, float]) -> None:
    """A row of TensorBoard's HParams table: the settings and what came of them."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            ends = {f"end/{name}": value for name, value in losses.items()}
            logger.log_hyperparams(plain(config), ends, trainer.global_step)  # where a longer run leaves them out
            logger.finalize("success")
