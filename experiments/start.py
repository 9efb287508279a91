"""How a run starts: what the names in its settings stand for, and the checkpoint from which it goes on."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.assemble import Assembly
from experiments.changes import describe, note_changes, refuse_foreign, weight_changes
from experiments.config import Config, ExperimentConfig, plain
from experiments.own_checkpoint import check_fits, read_own
from experiments.read_config import read_config
from experiments.run_folder import RunFolder
from lumos_pl.checkpoints.complete import newest_complete, with_steps_names
from lumos_pl.checkpoints.description import made_with, refuse_changes
from lumos_pl.checkpoints.named import EMBEDDED, LATEST, resolve_latest, resolve_named
from lumos_pl.checkpoints.remote import restore
from lumos_pl.checkpoints.sharded import is_sharded
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.machinery.folder_probe import probe
from lumos_pl.machinery.progress import mark
from lumos_pl.optimized_module import go_on_as, identity_of_run
from lumos_pl.settings.differences import Difference
from lumos_pl.tokenizers.load import TEXT_TOKENIZER_FILE, VISUAL_TOKENIZER_FILE

HOW_LONG_AND_BY_HOW_MANY = (
    "trainer.max_steps",
    *(f"trainer.{name}" for name in ("devices", "num_nodes", "accumulate", "shard_size")),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """From where a run goes on.

    Args:
        checkpoint: its newest complete one; None: from the start.
        step: the steps that it has.
        changes: what the weights depend on and it was made with otherwise.
    """

    checkpoint: Path | None = None
    step: int = 0
    changes: list[Difference] = field(default_factory=list)


def prepare(folder: RunFolder, config: Config, *, is_new: bool) -> None:
    """See what the run's folder can do and holds; on a new machine, bring there what the run has in an object store.

    Rank 0's work, under the run's lock, before the others are asked to come.
    """
    if is_new:
        folder.check_unused()
    for lack in probe(folder.path):
        print(f"this file system has limits: {lack}")
    if is_new:
        return
    folder.adopt()
    saving = config.checkpoint
    if saving.upload is not None:
        mark("bringing a checkpoint from the object store", slow=True)
        if (came := restore(saving.upload, folder.path, retry=saving.retry)) is not None:
            print(f"fetched from {saving.upload}: {came}")


def find_start(folder: RunFolder, config: Config, parts: Assembly, *, allow_changes: bool, fix: str) -> Start:
    """Where the run goes on: rank 0's work.

    Args:
        allow_changes: whether it may go on with other data, batches, model, vocabulary or optimizer.
        fix: what to do where it may not, and has.
    Raises:
        CheckpointError: no checkpoint is complete, or it was made with something else.
    """
    if os.path.lexists(folder.result):
        folder.read_result()  # what is none of ours is not written over
    if not with_steps_names(folder.checkpoints):
        with_resolved_start(config)  # from which it starts, then
        return Start()
    checkpoint, passed_over = newest_complete(folder.checkpoints, retry=config.checkpoint.retry)
    for line in passed_over:
        print(f"passed over: {line}")
    print(f"resuming from {checkpoint}")
    saved = read_own(checkpoint)
    begun = made_with(saved.lumos)
    go_on_as(parts.data, begun)
    if allow_changes:
        check_fits(parts.module, saved, checkpoint)
    else:
        batches = config.trainer.batches_per_step
        identity: dict[str, Any] = identity_of_run(parts.module, parts.data, batches, saved.global_step)
        refuse_changes(begun, identity, checkpoint, fix=fix)
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
    if not allow_changes:
        refuse_foreign(changes, made, config, checkpoint)
    return Start(checkpoint=checkpoint, step=saved.global_step, changes=changes)


def note_start(folder: RunFolder, config: Config, start: Start) -> None:
    """Say and write down with what the run goes on: rank 0's work."""
    for change in start.changes:
        print(f"changed: {describe(change)}")
    if start.changes:
        note_changes(folder.changes, start.changes, start.step)
    folder.note_job()
    folder.write_config(config)


def refuse_other_settings(folder: RunFolder, config: Config) -> None:
    """Raise ConfigError where a run that is over was trained with other settings: what is asked for is another run."""
    begun = _begun_with(folder)
    if begun is None:
        return
    for change in weight_changes(plain(begun), config, folder.config):
        if change.where not in HOW_LONG_AND_BY_HOW_MANY:
            raise ConfigError(
                "this run is over, and was trained with other settings",
                file=folder.path,
                where=change.where,
                got=change.asked,
                expected=change.made,
                fix="give another run.name",
            )


def with_resolved_start(config: Config, folder: RunFolder | None = None) -> Config:
    """The configuration with what `init_from` and the names of the tokenizers stand for.

    Args:
        folder: of the run, if it may have begun: then names stand for what they stood for, and what it started from may
            be gone. It may have begun on another machine, too.
    """
    if not isinstance(config, ExperimentConfig):
        return config
    begun = None if folder is None else _begun_with(folder)
    if isinstance(begun, ExperimentConfig):
        config = _with_names_of(begun, config)
    is_elsewhere = folder is not None and config.checkpoint.upload is not None
    with suppress(LumosError) if is_elsewhere else nullcontext():
        config = replace(config, init_from=_source(config.init_from, may_be_gone=begun is not None))
    return with_resolved_tokenizers(config)


def _source(init_from: str | None, *, may_be_gone: bool) -> str | None:
    if init_from is None or (init_from == EMBEDDED and not Path(init_from).exists()):
        return init_from  # the latter stands for the same on any machine
    source = resolve_named(Path(init_from))
    if not (may_be_gone or source.exists()):
        raise CheckpointError("no such checkpoint", file=source, where="init_from")
    return str(source)


def _begun_with(folder: RunFolder) -> Config | None:
    """The configuration of a run that has begun; None: it has not, or nobody can say with which."""
    with suppress(LumosError):  # what a person made of the file decides nothing
        return read_config(folder.config) if folder.config.is_file() else None
    return None


def _with_names_of(begun: ExperimentConfig, config: ExperimentConfig) -> ExperimentConfig:
    """What `latest` stood for when the run was begun, where the configuration says `latest`."""

    def then(now: str | None, before: str | None) -> str | None:
        return before if before is not None and now is not None and LATEST in Path(now).parts else now

    return replace(
        config,
        init_from=then(config.init_from, begun.init_from),
        visual_tokenizer=then(config.visual_tokenizer, begun.visual_tokenizer),
        data=replace(config.data, text_tokenizer=then(config.data.text_tokenizer, begun.data.text_tokenizer)),
    )


def with_resolved_tokenizers(config: Config) -> Config:
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


def check_hardware(experiment: str, config: Config) -> None:
    """Raise ConfigError unless the machine has the GPUs that a run asks for."""
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
