"""Whether a training step fits, and the settings that make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from data_modules.shards.manifest import Manifest
from experiments.config import ExperimentConfig, TokenizerExperimentConfig
from experiments.plan.batches import BatchPlan, batch_plan, sample_shapes
from experiments.plan.placement import Placed, place
from experiments.plan.words import CPU, USABLE, Machine, PlanWords, gpu_like
from experiments.trainer_config import TrainerConfig
from lumos_pl.errors import ConfigError
from lumos_pl.models.config import Recomputed
from lumos_pl.tokenizers.tokenizer_file import build_tokenizer


def place_here(config: ExperimentConfig, manifests: Mapping[str, Manifest]) -> Placed:
    """Settle how a run is placed on this machine, or refuse what the machine cannot hold, before any memory is taken.

    What is chosen leaves the share of memory that a plan leaves; what is refused needs more than all that the GPU, or
    the machine, has: it has no chance. All processes have to be alike, or they would not choose alike.

    Args:
        manifests: of the run's shards, by kind, or by a mixture's source.
    Raises:
        ConfigError: the computed peak of a process is above it.
    """
    trainer, limit, words = config.trainer, _memory_here(config.trainer), PlanWords()
    machine = Machine(
        gpu=CPU if trainer.works_on_cpu else gpu_like(torch.cuda.get_device_name(0)),
        gpus=trainer.processes,
        usable=int(USABLE * limit),
        mfu=words.mfu,
        node=trainer.devices,
        bandwidth=words.bandwidth,
    )
    shapes = {kind: sample_shapes(config, words, kind, manifest) for kind, manifest in manifests.items()}
    batches = [batch_plan(config, kind, each.weights, machine.gpus) for kind, each in shapes.items()]
    placed = place(config, batches, machine)
    if placed.peak <= limit:
        return placed
    fix = find_fix(config, batches, replace(machine, usable=limit))
    longest = max((batch.longest for batch in batches), key=lambda alike: sum(spans.length for spans in alike))
    raise ConfigError(
        "a training step needs more memory than there is",
        where="data, model",
        got=f"{placed.peak / 2**30:.1f} GiB a process for {sum(spans.length for spans in longest):,} tokens (computed)",
        expected=f"at most {limit / 2**30:.1f} GiB",
        fix=" ".join(fix) if fix else "fewer frames, smaller pictures or a smaller model",
    )


def check_tokenizer_fits(config: TokenizerExperimentConfig) -> None:
    """Refuse a visual tokenizer that this machine cannot train, however small the clips, before any memory is taken.

    Raises:
        ConfigError: its weights, their gradients and the two moments of AdamW are more than all that there is.
    """
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in build_tokenizer(config.tokenizer).parameters())
    needed, limit = 4 * 4 * weights, _memory_here(config.trainer)
    if needed > limit:
        smaller = "entries" if config.tokenizer.kind == "dictionary" else "width"
        raise ConfigError(
            "a training step needs more memory than there is",
            where="tokenizer",
            got=f"{needed / 2**30:.1f} GiB a process for {weights:,} weights (computed)",
            expected=f"at most {limit / 2**30:.1f} GiB",
            fix=f"a smaller tokenizer.{smaller}, or smaller tokenizer.strides",
        )


def _memory_here(trainer: TrainerConfig) -> int:
    """Bytes that a process of this machine can have."""
    if trainer.works_on_cpu:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // trainer.devices
    return torch.cuda.get_device_properties(0).total_memory


def find_fix(config: ExperimentConfig, batches: list[BatchPlan], machine: Machine) -> list[str] | None:
    """The first overrides that fit into what is usable; None: none do."""
    thrifty = _thriftier(config, batches, machine.gpus)
    return next((overrides for overrides, c, b in thrifty if place(c, b, machine).fits), None)


def _thriftier(
    config: ExperimentConfig, batches: list[BatchPlan], gpus: int
) -> Iterator[tuple[list[str], ExperimentConfig, list[BatchPlan]]]:
    """Ever more sparing settings, each with its overrides: recompute, shard, then halve the batches, then offload.

    What is `auto` has been tried already, and is again with each of them.
    """
    overrides: list[str] = []
    more: dict[object, list[Recomputed]] = {"none": ["selective", "full"], "selective": ["full"]}
    for level in more.get(config.model.activation_checkpointing, []):
        config = replace(config, model=replace(config.model, activation_checkpointing=level))
        overrides = [f"model.activation_checkpointing={level}"]
        yield overrides, config, batches
    sharded = [] if config.trainer.strategy == "fsdp2" else ["trainer.strategy=fsdp2"]
    if gpus > 1 and sharded:
        config = replace(config, trainer=replace(config.trainer, strategy="fsdp2"))
        overrides, sharded = [*overrides, *sharded], []
        yield overrides, config, batches
    sizes: list[str] = []
    while any(len(batch.longest) > 1 for batch in batches):
        batches = [replace(batch, longest=batch.longest[: max(1, len(batch.longest) // 2)]) for batch in batches]
        keys = [config.data.named(batch.kind).key for batch in batches]
        sizes = [f"{key}.batch_size={len(batch.longest)}" for key, batch in zip(keys, batches, strict=True)]
        yield [*overrides, *sizes], config, batches
    if not config.trainer.cpu_offload:
        config = replace(config, trainer=replace(config.trainer, strategy="fsdp2", cpu_offload=True))
        yield [*overrides, *sizes, *sharded, "trainer.cpu_offload=true"], config, batches
