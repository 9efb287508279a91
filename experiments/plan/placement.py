"""How a run is placed on its GPUs: what is recomputed, and how the weights are shared out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

from experiments.config import ExperimentConfig
from experiments.plan.batches import BatchPlan, count_visual_tokens
from experiments.plan.communication import Traffic, step_traffic
from experiments.plan.words import Machine
from lumos_pl.loss.masked_cross_entropy import chunk_rows
from lumos_pl.models.config import Placement, Recomputed
from lumos_pl.models.memory import Moment, StepSettings, most_bytes, step_memory
from lumos_pl.models.parameters import parameter_counts


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A placement and what comes of it.

    Args:
        settings: of a step, the placement among them.
        memory: bytes per process by moment and component, for the batch that takes the most.
        seconds: of a step's products, by kind of batch; empty on a CPU.
        traffic: of a step, by kind of batch; empty on a CPU.
        least: by how much is recomputed, the least peak among what was compared.
        usable: bytes of a process; None is any number.
    """

    settings: StepSettings
    memory: dict[Moment, dict[str, int]]
    seconds: dict[str, float]
    traffic: dict[str, Traffic]
    least: dict[Recomputed, int]
    usable: int | None

    @property
    def placement(self) -> Placement:
        return self.settings.placement

    @property
    def peak(self) -> int:
        return most_bytes(self.memory)

    @property
    def fits(self) -> bool:
        return self.usable is None or self.peak <= self.usable

    def describe(self) -> str:
        """One line: what was settled, and why."""
        placement, parts = self.placement, [f"recompute {self.placement.recompute}"]
        if len(self.least) > 1 and self.usable is not None:
            peaks = ", ".join(f"{kind} {peak / 2**30:.1f}" for kind, peak in self.least.items())
            parts[0] += f" ({peaks} GiB at the least, {self.usable / 2**30:.1f} usable)"
        if self.settings.shards > 1:
            parts.append(f"shards over {placement.shard_size}")
            parts.append("layers gathered twice" if placement.reshard_after_forward else "layers gathered once")
            if self.settings.accumulate > 1:
                parts.append(f"gradients exchanged {'once a step' if placement.reduce_once else 'after every batch'}")
        return ", ".join(parts)


def place(config: ExperimentConfig, batches: Sequence[BatchPlan], machine: Machine) -> Placed:
    """Settle what the configuration leaves open.

    1. What is set is set: `model.activation_checkpointing`, `trainer.shard_size`, `trainer.reshard_after_forward`.
    2. Of what fits, that which recomputes least: `none`, else `selective`, else `full`.
    3. Of these, that in which the GPUs wait least for each other (see `step_traffic`): shards over all processes or
       over one node (HSDP), layers gathered twice or once, gradients exchanged after every batch or once a step.
       Where they wait alike, what keeps the links less busy, and then what takes less memory.
    4. If nothing fits, what takes least.

    On a CPU, of whose links nothing is known, 3. is what takes the least memory.
    """
    ways = [_with(config, batches, machine, placement) for placement in _candidates(config, machine)]
    least: dict[Recomputed, int] = {}
    for way in ways:
        kind = way.placement.recompute
        least[kind] = min(least.get(kind, way.peak), way.peak)
    for kind in least:
        fitting = [way for way in ways if way.placement.recompute == kind and way.fits]
        if fitting:
            break
    else:
        fitting = [min(ways, key=lambda way: way.peak)]

    def cost(way: Placed) -> tuple[float, float, int]:
        exposed, busy = (
            sum(batch.share * getattr(way.traffic[batch.kind], name) for batch in batches if way.traffic)
            for name in ("exposed", "seconds")
        )
        return exposed, busy, way.peak

    return replace(min(fitting, key=cost), least=least)


def _candidates(config: ExperimentConfig, machine: Machine) -> Iterator[Placement]:
    """All that the configuration leaves open; what takes less memory, or is simpler, comes first."""
    trainer, gpus, recompute = config.trainer, machine.gpus, config.model.activation_checkpointing
    kinds: list[Recomputed] = [kind for kind in get_args(Recomputed) if recompute in ("auto", kind)]
    if trainer.strategy != "fsdp2":
        yield from (Placement(recompute=kind) for kind in kinds)
        return
    sizes: list[int] = [gpus]
    if isinstance(trainer.shard_size, int):
        sizes = [trainer.shard_size]
    elif trainer.shard_size == "auto" and machine.node < gpus and gpus % machine.node == 0:
        sizes.append(machine.node)
    again = [True, False] if trainer.reshard_after_forward == "auto" else [trainer.reshard_after_forward]
    for kind, size, reshard, once in product(kinds, sizes, again, [False, True]):
        yield Placement(recompute=kind, shard_size=size, reshard_after_forward=reshard, reduce_once=once)


def _with(config: ExperimentConfig, batches: Sequence[BatchPlan], machine: Machine, placement: Placement) -> Placed:
    """What comes of a placement: memory of the batch that takes the most, its visual tokens all hidden."""
    model, settings = config.model.build(config.layout.build()), _step_settings(config, machine, placement)
    memories = []
    for batch in batches:
        n_tokens = sum(spans.length for spans in batch.longest)
        memories.append(step_memory(model, settings, n_tokens=n_tokens, n_targets=count_visual_tokens(batch.longest)))
    memory = max(memories, key=most_bytes)
    seconds, traffic = {}, {}
    peak = machine.peak_flops(config.trainer.precision)
    if peak is not None:
        seconds = {batch.kind: batch.flops.total / (machine.gpus * peak * machine.mfu) for batch in batches}
        counts = parameter_counts(model)
        traffic = {kind: step_traffic(counts, settings, machine, seconds=took) for kind, took in seconds.items()}
    return Placed(
        settings=settings,
        memory=memory,
        seconds=seconds,
        traffic=traffic,
        least={placement.recompute: most_bytes(memory)},
        usable=machine.usable,
    )


def _step_settings(config: ExperimentConfig, machine: Machine, placement: Placement) -> StepSettings:
    return StepSettings(
        mixed=config.trainer.precision == "bf16-mixed",
        placement=placement,
        strategy="fsdp2" if config.trainer.strategy == "fsdp2" else "ddp" if machine.gpus > 1 else "single",
        cpu_offload=config.trainer.cpu_offload,
        accumulate=config.trainer.accumulate,
        optimizer=config.optimizer.kind,
        ema=config.optimizer.ema_decay > 0,
        chunk_size=chunk_rows(config.loss, "cpu" if machine.link is None else "cuda"),
        cuda=machine.link is not None,
        adapter=config.adapter if config.adapter.is_on else None,
    )
