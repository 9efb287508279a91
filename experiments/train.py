"""Train an experiment, or go on with a run: joins the module, the data, the callbacks and the run's folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from experiments.assemble import Assembly, assemble
from experiments.changes import describe, log_changes, note_changes, refuse_foreign, weight_changes
from experiments.config import Config, ExperimentConfig, config_to_resume, plain, read_config
from experiments.own_checkpoint import misfit, read_own
from experiments.roll_call import await_started, failure_beside, forget_answers, own_failure
from experiments.run_folder import RunFolder
from experiments.slurm import stop_request
from experiments.trainer import (
    build_trainer,
    import_classes,
    log_hyperparameters,
    refused_by_lightning,
)
from lumos_pl.checkpoints.complete import newest_complete, with_steps_names
from lumos_pl.checkpoints.description import made_with, refuse_changes
from lumos_pl.checkpoints.named import LATEST, resolve_latest, resolve_named
from lumos_pl.checkpoints.saving import Checkpointing
from lumos_pl.checkpoints.sharded import is_sharded
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.machinery.lightning_private import process_rank
from lumos_pl.machinery.stop_request import StopRequest
from lumos_pl.models.config import UNPLACED
from lumos_pl.optimized_module import identity_of_run
from lumos_pl.settings.differences import Difference, differences
from lumos_pl.tokenizers.load import TEXT_TOKENIZER_FILE, VISUAL_TOKENIZER_FILE

OF_STATE = (RuntimeError, ValueError, KeyError, OSError, EOFError, CheckpointException)  # that does not fit


def train(experiment: str, config: Config) -> RunFolder:
    """Train a new run to its end, or, in a SLURM job that was requeued, go on with the one that it has begun.

    Before the hardware and the data are known to fit, nothing is written but the clips that the
    experiment makes for itself.
    """
    folder = RunFolder.named(experiment, config)
    config = replace(config, run=replace(config.run, name=folder.path.name))  # its checkpoints say whose they are
    if folder.is_of_this_job():
        _refuse_other_settings(folder, config)
        return resume(folder.path, [], allow_imports=True)  # all that it names, the user's own settings name too
    _check_hardware(experiment, config)
    import_classes(config)
    with stop_request() as stop:
        config = with_resolved_start(config)
        parts = assemble(config)
        with folder.lock(rank=process_rank()):
            if process_rank() == 0:
                folder.check_unused()
                if not config.trainer.is_dry:
                    folder.note_job()
                    folder.write_config(config)
            _fit(folder, config, parts, stop)
    return folder


def resume(
    path: Path, overrides: Sequence[str], *, allow_changes: bool = False, allow_imports: bool = False
) -> RunFolder:
    """Go on from a run's newest complete checkpoint as if it had never stopped; without any, from the start.

    After the last step that is what comes then: the last validation, what the callbacks judge, the result.
    Overrides become part of the run's configuration.

    Args:
        allow_imports: whether parts of the user's own that the run's file names may be imported, see own_parts.py.
    Raises:
        ConfigError: it names some, and may not.
        CheckpointError: no checkpoint is complete, or (unless `allow_changes`) the data, batches,
            model, vocabulary or optimizer are not the ones it was made with.
    """
    folder = RunFolder(resolve_named(path))
    if not folder.config.is_file():
        raise ConfigError("not a run's folder", file=folder.path, got="no config.yaml", fix="give runs/EXP/NAME")
    config = _with_resolved_tokenizers(config_to_resume(folder.config, overrides, allow_imports=allow_imports))
    if config.trainer.is_dry:
        fix = "try it with `lumos train`"
        raise ConfigError("a dry run leaves nothing to go on with", where="trainer.fast_dev_run", fix=fix)
    _check_hardware(folder.path.parent.name, config)
    with stop_request() as stop, folder.lock(rank=process_rank()):
        parts = assemble(config)
        checkpoint, start_step, changes = None, 0, list[Difference]()
        if process_rank() == 0:
            folder.adopt()
        if os.path.lexists(folder.result):
            folder.read_result()  # what is none of ours is not written over
        if with_steps_names(folder.checkpoints):
            identity = partial(identity_of_run, parts.module, parts.data, config.trainer.batches_per_step)
            checkpoint, start_step, changes = _find_start(folder, config, None if allow_changes else identity)
        if start_step >= config.trainer.max_steps and folder.has_ended(config.trainer.max_steps):
            if process_rank() == 0:
                print(f"this run is at its end: step {start_step} of {config.trainer.max_steps}")
            return folder
        if process_rank() == 0:
            for change in changes:
                print(f"changed: {describe(change)}")
            if changes:
                note_changes(folder.changes, changes, start_step)
            folder.write_config(config)
        _fit(folder, config, parts, stop, checkpoint=checkpoint, start_step=start_step, changes=changes)
    return folder


def _refuse_other_settings(folder: RunFolder, config: Config) -> None:
    """Raise ConfigError unless a run was begun with this configuration; what it started from no longer matters."""
    begun, asked = (plain(one) | {"init_from": None, "run": None} for one in (read_config(folder.config), config))
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


def _find_start(
    folder: RunFolder, config: Config, identity: Callable[[int], dict[str, Any]] | None
) -> tuple[Path, int, list[Difference]]:
    """The newest complete checkpoint, its step, and what the weights depend on and it was made with otherwise.

    Args:
        identity: what must be as it was at the checkpoint's step.
    """
    checkpoint, passed_over = newest_complete(folder.checkpoints)
    if process_rank() == 0:
        for line in passed_over:
            print(f"passed over: {line}")
        print(f"resuming from {checkpoint}")
    saved = read_own(checkpoint)
    if identity is not None:
        fix = "restore it, or add --allow-changes to go on all the same"
        refuse_changes(made_with(saved.lumos), identity(saved.global_step), checkpoint, fix=fix)
    if is_sharded(checkpoint) != (config.trainer.strategy == "fsdp2"):
        raise CheckpointError(
            "a sharded checkpoint goes with trainer.strategy=fsdp2, a single file with the others",
            file=checkpoint,
            where="trainer.strategy",
            got=config.trainer.strategy,
            fix="keep the strategy, or start a new run with init_from",
        )
    made = saved.lumos.config
    changes = weight_changes(made, config, checkpoint)
    if identity is not None:
        refuse_foreign(changes, made, config, checkpoint)
    return checkpoint, saved.global_step, changes


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
    changes: Sequence[Difference] = (),
) -> None:
    module = parts.module
    module.allow_changes = True  # they were looked at before, where `allow_changes` is an option
    if checkpoint is not None:
        module.init_from = None
    if process_rank() == 0:
        forget_answers(folder.path)
    patience = timedelta(seconds=config.trainer.rank_timeout_s)
    checkpointing = Checkpointing(folder.checkpoints, config.checkpoint, plain(config), stop, timeout=patience)
    placement = UNPLACED
    if parts.placed is not None:
        placement = parts.placed.placement
        if process_rank() == 0 and (placement.recompute != "none" or not config.trainer.works_on_cpu):
            print(f"settled: {parts.placed.describe()}")
    own = [*parts.callbacks, checkpointing]
    trainer = build_trainer(config, folder, own, placement, start_step=start_step)
    if trainer.is_global_zero:
        log_changes(trainer.loggers, changes, start_step)
    started = time.monotonic()
    try:
        trainer.fit(module, parts.data, ckpt_path=checkpoint, weights_only=True)
    except Exception as error:
        failure: Exception | None = failure_beside(error, trainer, config.trainer.rank_timeout_s)
        if failure is None and isinstance(error, MisconfigurationException):
            failure = refused_by_lightning(error)
        is_of_state = isinstance(error, OF_STATE) and not isinstance(error, LumosError)
        if failure is None and is_of_state and checkpoint and trainer.train_dataloader is None:  # data come after state
            failure = misfit(error, checkpoint)
        raise own_failure(failure or error, trainer) from error
    if config.trainer.is_dry:
        return  # nothing was saved or logged, and nothing came of it
    result = {
        "experiment": folder.path.parent.name,
        "steps": trainer.global_step,
        "seconds": round(time.monotonic() - started, 2),
        "loss": checkpointing.losses(trainer),
        **_summary(trainer),
        "weights_sha256": weights_sha256(module.get_submodule("net")),
    }
    if trainer.is_global_zero:
        await_started(trainer, config.trainer.rank_timeout_s)
        folder.write_result(result)
        log_hyperparameters(trainer, config, result["loss"])


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
