"""Train an experiment, or go on with a run: joins the module, the data, the callbacks and the run's folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.jsonl_logger import last_figure
from experiments.assemble import Assembly, assemble
from experiments.attempts import AttemptWriter, attempt
from experiments.changes import log_changes
from experiments.config import Config, ExperimentConfig, plain
from experiments.failures import as_temporary, warnings_held_back
from experiments.launched import in_launched_world
from experiments.own_checkpoint import misfit
from experiments.prior import draw_prior, with_prior
from experiments.read_config import config_to_resume
from experiments.roll_call import await_started, end_of_all, failure_beside, forget_answers, own_failure
from experiments.run_folder import RunFolder
from experiments.slurm import stop_request
from experiments.start import (
    Start,
    check_hardware,
    find_start,
    note_start,
    prepare,
    refuse_other_settings,
    with_resolved_start,
    with_resolved_tokenizers,
)
from experiments.together import check_one_folder, failures_told_to_others, from_rank_0, meet
from experiments.trainer import (
    begin_logging,
    build_trainer,
    import_classes,
    log_hyperparameters,
    refused_by_lightning,
)
from lumos_pl.adapters.stored import weights_sha256
from lumos_pl.checkpoints.complete import kept_checkpoints, step_of
from lumos_pl.checkpoints.grace import GraceCheck
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.checkpoints.saving import Checkpointing
from lumos_pl.checkpoints.together import look_through_together
from lumos_pl.errors import ConfigError, LumosError
from lumos_pl.machinery.lightning_private.ranks import process_rank
from lumos_pl.machinery.progress import now
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest
from lumos_pl.machinery.watch import Watch

SAME_COMMAND = "the same command goes on from there"
OF_STATE = (RuntimeError, ValueError, KeyError, OSError, EOFError, CheckpointException)  # that does not fit


def train(experiment: str, config: Config, *, resume_or_start: bool = False) -> RunFolder:
    """Train a new run to its end, or go on with the one that the same command has begun.

    Before the hardware and the data are known to fit, nothing is written but the clips that the
    experiment makes for itself.

    Args:
        resume_or_start: start the run if it has not begun, go on from wherever it was if it has, leave it if it is
            over. So it is in a SLURM job that was requeued, asked for or not.
    Raises:
        ConfigError: the run exists, and is not to be gone on with.
        CheckpointError: what its checkpoints were made with, and has to stay, is not what the configuration says.
        TemporaryError: another process works on it.
    """
    folder = RunFolder.named(experiment, config, again=resume_or_start)
    config = replace(config, run=replace(config.run, name=folder.path.name))  # its checkpoints say whose they are
    goes_on = resume_or_start or folder.is_of_this_job()
    if goes_on:
        _refuse_dry(config)
    config = in_launched_world(config)
    check_hardware(experiment, config)
    config = with_resolved_start(config, folder if goes_on else None)
    alone = config
    if isinstance(config, ExperimentConfig):
        config = with_prior(config)
    if goes_on and folder.is_over(config.trainer.max_steps):
        refuse_other_settings(folder, config)
        _say_it_is_over(config.trainer.max_steps, config)
        return folder
    fix = f"restore it, or go on all the same: `{folder.resuming} --allow-changes`"
    with _telling_of_stop(folder, config, SAME_COMMAND if goes_on else f"`{folder.resuming}` goes on from there"):
        if isinstance(config, ExperimentConfig):
            draw_prior(config, check=lambda: _check(alone))
        _run(folder, config, is_new=not goes_on, fix=fix)
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
    config = with_resolved_tokenizers(config_to_resume(folder.config, overrides, allow_imports=allow_imports))
    _refuse_dry(config)
    config = in_launched_world(config)
    check_hardware(folder.path.parent.name, config)
    fix = "restore it, or add --allow-changes to go on all the same"
    with _telling_of_stop(folder, config, SAME_COMMAND):
        _run(folder, config, allow_changes=allow_changes, fix=fix)
    return folder


def _check(config: Config) -> None:
    """Raise what `assemble` does; what it warns of is said as the training begins."""
    with warnings_held_back():
        assemble(config)


def _refuse_dry(config: Config) -> None:
    if config.trainer.is_dry:
        fix = "try it with `lumos train`"
        raise ConfigError("a dry run leaves nothing to go on with", where="trainer.fast_dev_run", fix=fix)


def _say_it_is_over(step: int, config: Config) -> None:
    if process_rank() == 0:
        print(f"this run is at its end: step {step} of {config.trainer.max_steps}")


@contextmanager
def _telling_of_stop(folder: RunFolder, config: Config, again: str) -> Iterator[None]:
    """Rank 0 says what is saved where a signal stops the run, whatever it does then; of a dry one nothing is.

    Args:
        again: what goes on with it.
    """
    try:
        yield
    except StoppedBySignal as stopped:
        is_another_ranks = process_rank() != 0
        if not (is_another_ranks or config.trainer.is_dry):
            _tell_stop(folder, again if folder.config.is_file() else "the same command starts it")
        stopped.is_told = is_another_ranks or not config.trainer.is_dry
        raise


def _tell_stop(folder: RunFolder, again: str) -> None:
    saved = kept_checkpoints(folder.checkpoints)
    done = f"stopped, step {step_of(saved[-1]):,} is saved" if saved else "stopped before its first checkpoint"
    print(f"lumos: {done} | {folder.path} | {again}", file=sys.stderr, flush=True)


def _run(
    folder: RunFolder,
    config: Config,
    *,
    is_new: bool = False,
    allow_changes: bool = False,
    fix: str,
) -> None:
    """From the checkpoint that rank 0 finds to the run's end; see `find_start` for the arguments."""
    import_classes(config)
    patience = timedelta(seconds=config.trainer.start_timeout_s)
    with stop_request() as stop, ExitStack() as held:
        stop.grace_s = config.trainer.grace_s
        with failures_told_to_others(config.trainer.num_nodes, patience):
            with warnings_held_back() as say_warnings:
                parts = assemble(config, was_there=folder.attempts.is_file())  # begun once the data had been opened
            held.enter_context(_outlasting_a_full_disk())
            held.enter_context(folder.lock(rank=process_rank()))
            one = held.enter_context(attempt(folder.attempts, step=lambda: now().step))
            watch = held.enter_context(_watch(folder, config, one))
            if process_rank() == 0:
                prepare(folder, config, is_new=is_new)
                forget_answers(folder.path)
            trainer = _trainer(folder, config, parts, stop, watch)
        start = Start()
        try:
            meet(trainer)
            check_one_folder(folder.path)
            if not is_new:
                timeout = config.trainer.backend_timeout
                look_through_together(folder.checkpoints, retry=config.checkpoint.retry, timeout=timeout)
                start = from_rank_0(lambda: find_start(folder, config, parts, allow_changes=allow_changes, fix=fix))
            if start.step >= config.trainer.max_steps and folder.has_ended(config.trainer.max_steps):
                _say_it_is_over(start.step, config)
                return
            if trainer.is_global_zero and not config.trainer.is_dry:
                note_start(folder, config, start)
                one.begin(trainer.world_size, start.step)
            say_warnings()
            _fit(folder, config, parts, trainer, start)
        except Exception as error:
            failure = _failure(error, trainer, config, start)
            if failure is error:
                raise  # with what it was raised from, which may say that it passes
            raise failure from error


@contextmanager
def _outlasting_a_full_disk() -> Iterator[None]:
    """Where there is no room in the run's folder, there may be some when the command is started again."""
    try:
        yield
    except (LumosError, OSError) as error:
        if (temporary := as_temporary(error)) is not None:
            raise temporary from error
        raise


def _watch(folder: RunFolder, config: Config, written: AttemptWriter) -> Watch:
    def tell(failure: LumosError) -> int:
        status = end_of_all(failure, folder.path)
        written.end(status, str(failure))
        return status

    limits = {"limit_s": config.trainer.rank_timeout_s, "slow_limit_s": config.trainer.start_timeout_s}
    return Watch(folder.path, process_rank(), **limits, tell=tell)


def _trainer(folder: RunFolder, config: Config, parts: Assembly, stop: StopRequest, watch: Watch) -> Trainer:
    patience = config.trainer.backend_timeout
    checkpointing = Checkpointing(folder.checkpoints, config.checkpoint, plain(config), stop, timeout=patience)
    earlier_s = last_figure(folder.metrics, "checkpoint/seconds") if process_rank() == 0 else None
    grace = GraceCheck(checkpointing, config.trainer.grace_s, earlier_s)
    own = [*parts.callbacks, grace, checkpointing]
    if parts.placed is None:
        return build_trainer(config, folder, own, watch=watch)
    placement = parts.placed.placement
    if process_rank() == 0 and (placement.recompute != "none" or not config.trainer.works_on_cpu):
        print(f"settled: {parts.placed.describe()}")
    return build_trainer(config, folder, own, placement, watch=watch)


def _fit(folder: RunFolder, config: Config, parts: Assembly, trainer: Trainer, start: Start) -> None:
    module = parts.module
    module.allow_changes = True  # they were looked at before, where `allow_changes` is an option
    if start.checkpoint is not None and not (isinstance(config, ExperimentConfig) and config.adapter.is_on):
        module.init_from = None  # of an adapter the decoder lies outside of the checkpoints, and is read anew
    begin_logging(trainer, config, start.step)
    if trainer.is_global_zero:
        log_changes(trainer.loggers, start.changes, start.step)
    started = time.monotonic()
    trainer.fit(module, parts.data, ckpt_path=start.checkpoint, weights_only=True)
    if config.trainer.is_dry:
        return  # nothing was saved or logged, and nothing came of it
    (checkpointing,) = (one for one in trainer.checkpoint_callbacks if isinstance(one, Checkpointing))
    net = module.get_submodule("net")
    result = {
        "experiment": folder.path.parent.name,
        "steps": trainer.global_step,
        "seconds": round(time.monotonic() - started, 2),
        "loss": checkpointing.losses(trainer),
        "trained_parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
        **_summary(trainer),
        "weights_sha256": weights_sha256(net.named_parameters()),
    }
    if trainer.is_global_zero:
        await_started(trainer, config.trainer.rank_timeout_s)
        folder.write_result(result)
        log_hyperparameters(trainer, config, result["loss"])


def _failure(error: Exception, trainer: Trainer, config: Config, start: Start) -> Exception:
    """What an error that ends the run is to this process: another's, Lightning's, the checkpoint's, or its own."""
    failure: Exception | None = failure_beside(error, trainer, config.trainer.rank_timeout_s)
    if failure is None and isinstance(error, MisconfigurationException):
        failure = refused_by_lightning(error)
    is_of_state = isinstance(error, OF_STATE) and not isinstance(error, LumosError)
    if (
        failure is None and is_of_state and start.checkpoint and trainer.train_dataloader is None
    ):  # data come after state
        failure = misfit(error, start.checkpoint)
    return own_failure(failure or as_temporary(error) or error, trainer)


def _summary(trainer: Trainer) -> dict[str, Any]:
    """What the callbacks measured."""
    summary: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "summary"):
            summary |= callback.summary()
    return summary
