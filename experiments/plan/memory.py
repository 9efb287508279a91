"""Whether a training step fits, and the settings that make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from data_modules.manifest import Manifest
from experiments.config import ExperimentConfig, TrainerConfig
from experiments.plan.batches import BatchPlan, batch_plan, count_visual_tokens, sample_shapes
from experiments.plan.words import CPU, PlanWords
from lumos_pl.errors import ConfigError
from lumos_pl.models.config import Recomputed
from lumos_pl.models.memory import Moment, StepSettings, step_memory


def strategy_of(config: ExperimentConfig, gpus: int) -> Literal["single", "ddp", "fsdp2"]:
    if config.trainer.strategy == "fsdp2":
        return "fsdp2"
    return "ddp" if gpus > 1 else "single"


def check_shards(config: ExperimentConfig, gpus: int) -> None:
    """`gpus=` may say other than the experiment, which was checked against itself."""
    size = config.trainer.shard_size
    if size is not None and gpus % size:
        raise ConfigError(
            "does not divide the GPUs", where="trainer.shard_size", got=size, expected=f"a divisor of {gpus}"
        )


def step_settings(config: ExperimentConfig, gpu: str, gpus: int) -> StepSettings:
    return StepSettings(
        mixed=config.trainer.precision == "bf16-mixed",
        recomputed=config.model.activation_checkpointing,
        strategy=strategy_of(config, gpus),
        n_ranks=config.trainer.shard_size or gpus,
        cpu_offload=config.trainer.cpu_offload,
        accumulate=config.trainer.accumulate,
        optimizer=config.optimizer.kind,
        ema=config.optimizer.ema_decay > 0,
        chunk_size=config.loss.chunk_size,
        cuda=gpu != CPU,
    )


def peak_memory(
    config: ExperimentConfig, batches: Sequence[BatchPlan], gpu: str, gpus: int
) -> dict[Moment, dict[str, int]]:
    """Of the batch that takes the most, its visual tokens all hidden, as a ratio of 1 has it."""
    settings = step_settings(config, gpu, gpus)
    model = config.model.build(config.layout.build())
    plans = []
    for batch in batches:
        n_tokens = sum(spans.length for spans in batch.longest)
        plans.append(step_memory(model, settings, n_tokens=n_tokens, n_targets=count_visual_tokens(batch.longest)))
    return max(plans, key=most_bytes)


def most_bytes(memory: dict[Moment, dict[str, int]]) -> int:
    return max(sum(components.values()) for components in memory.values())


def check_memory(config: ExperimentConfig, manifests: Mapping[str, Manifest]) -> None:
    """Refuse a run that this machine cannot hold, before it takes any memory.

    The limit is all that the GPU, or the machine, has: what is refused has no chance.

    Args:
        manifests: of the run's shards, by kind.
    Raises:
        ConfigError: the computed peak of a process is above it.
    """
    trainer = config.trainer
    gpu, gpus = CPU if trainer.works_on_cpu else "h100-80g", trainer.processes
    shapes = {kind: sample_shapes(config, PlanWords(), kind, manifest) for kind, manifest in manifests.items()}
    batches = [batch_plan(config, kind, each.weights, gpus) for kind, each in shapes.items()]
    peak, limit = most_bytes(peak_memory(config, batches, gpu, gpus)), _memory_here(trainer)
    if peak <= limit:
        return
    fix = find_fix(config, batches, gpu, gpus, limit)
    longest = max((batch.longest for batch in batches), key=lambda alike: sum(spans.length for spans in alike))
    raise ConfigError(
        "a training step needs more memory than there is",
        where="data, model",
        got=f"{peak / 2**30:.1f} GiB a process for {sum(spans.length for spans in longest):,} tokens (computed)",
        expected=f"at most {limit / 2**30:.1f} GiB",
        fix=" ".join(fix) if fix else "fewer frames, smaller pictures or a smaller model",
    )


def _memory_here(trainer: TrainerConfig) -> int:
    """Bytes that a process of this machine can have."""
    if trainer.works_on_cpu:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // trainer.devices
    return torch.cuda.get_device_properties(0).total_memory


def find_fix(config: ExperimentConfig, batches: list[BatchPlan], gpu: str, gpus: int, limit: int) -> list[str] | None:
    """The first overrides that fit into `limit` bytes; None: none do."""
    thrifty = _thriftier(config, batches, gpus)
    return next((f for f, c, b in thrifty if most_bytes(peak_memory(c, b, gpu, gpus)) <= limit), None)


def _thriftier(
    config: ExperimentConfig, batches: list[BatchPlan], gpus: int
) -> Iterator[tuple[list[str], ExperimentConfig, list[BatchPlan]]]:
    """Ever more sparing settings, each with its overrides: recompute, shard, then halve the batches, then offload."""
    overrides: list[str] = []
    levels: list[Recomputed] = ["none", "selective", "full"]
    for level in levels[levels.index(config.model.activation_checkpointing) + 1 :]:
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
        sizes = [f"data.{batch.kind}.batch_size={len(batch.longest)}" for batch in batches]
        yield [*overrides, *sizes], config, batches
    if not config.trainer.cpu_offload:
        config = replace(config, trainer=replace(config.trainer, strategy="fsdp2", cpu_offload=True))
        yield [*overrides, *sizes, *sharded, "trainer.cpu_offload=true"], config, batches
