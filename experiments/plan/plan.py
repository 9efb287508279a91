"""What a run needs and costs, by arithmetic: no model is built, no shard opened. `lumos plan` asks for no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.config import Config, ExperimentConfig
from experiments.plan.batches import BatchPlan, batch_plan, mean_mask_ratio, sample_shapes
from experiments.plan.communication import Traffic
from experiments.plan.course import (
    Advice,
    DataCourse,
    SaveCourse,
    advise,
    data_course,
    node_memory,
    save_course,
)
from experiments.plan.memory import find_fix
from experiments.plan.placement import Placed, place
from experiments.plan.words import CPU, DEFAULT_GPU, GPUS, USABLE, Machine, PlanWords
from experiments.read_config import load_experiment
from lumos_pl.errors import ConfigError
from lumos_pl.models.config import Placement
from lumos_pl.models.memory import Moment, host_memory
from lumos_pl.models.parameters import ParameterCounts, parameter_counts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `lumos plan` says.

    Args:
        placement, placed: what was settled for these GPUs, and the same in words.
        memory: bytes per GPU by moment and component, for the batch that takes the most.
        host: bytes of the host's memory per GPU by component: of fsdp2.
        usable: bytes of the GPU that count as free; None on a CPU.
        fix: overrides that make it fit: none needed is empty, None is none found.
        traffic: of a step, by kind of batch; empty on a CPU.
        tokens_per_second, days: of all GPUs; None on a CPU.
        exposed: share of that time in which the GPUs wait for each other; None on a CPU.
        data: what is read, by kind, or by a mixture's source.
        saves: what saving takes, and what a stop and a failure cost.
        node: bytes of a node's host memory, by component.
        advice: settings that would suit these machines better.
    """

    experiment: str
    gpu: str
    gpus: int
    mfu: float
    strategy: str
    steps: int
    parameters: ParameterCounts
    batches: list[BatchPlan]
    placement: Placement
    placed: str
    memory: dict[Moment, dict[str, int]]
    host: dict[str, int]
    usable: int | None
    fits: bool | None
    fix: list[str] | None
    traffic: dict[str, Traffic]
    exposed: float | None
    tokens_per_second: float | None
    days: float | None
    data: dict[str, DataCourse]
    saves: SaveCourse
    node: dict[str, int]
    advice: list[Advice]
    assumptions: list[str]

    @property
    def fullest(self) -> Moment:
        return max(self.memory, key=lambda moment: sum(self.memory[moment].values()))

    @property
    def peak(self) -> int:
        return sum(self.memory[self.fullest].values())


def plan_experiment(experiment: str, arguments: Sequence[str]) -> Plan:
    """The plan of a named experiment.

    Args:
        arguments: key=value, the plan's own words among the experiment's overrides.
    Raises:
        ConfigError: a key or value that does not fit, a tokenizer's experiment, samples longer than the context,
            or no way to know the samples' size.
    """
    own = [word for word in arguments if word.partition("=")[0] in PlanWords.__dataclass_fields__]
    words = PlanWords.parse(own)
    return make_plan(experiment, load_experiment(experiment, [w for w in arguments if w not in own]), words)


def make_plan(experiment: str, config: Config, words: PlanWords) -> Plan:
    if not isinstance(config, ExperimentConfig):
        raise ConfigError("only a decoder's training has a plan", where="task", got=config.task, expected="lumos")
    machine = _machine(config, words)
    size = config.trainer.shard_size
    if isinstance(size, int) and machine.gpus % size:  # `gpus=` may say other than the experiment
        expected = f"a divisor of {machine.gpus}"
        raise ConfigError("does not divide the GPUs", where="trainer.shard_size", got=size, expected=expected)
    samples = {read.name: sample_shapes(config, words, read.name) for read in config.data.all_sources}
    batches = [batch_plan(config, kind, shapes.weights, machine.gpus) for kind, shapes in samples.items()]
    placed = place(config, batches, machine)
    model, trainer = config.model.build(config.layout.build()), config.trainer
    seconds = tokens_per_second = exposed = None
    if placed.traffic:  # of a step, the kinds by their share
        waiting = sum(batch.share * placed.traffic[batch.kind].exposed for batch in batches)
        seconds = waiting + sum(batch.share * placed.seconds[batch.kind] for batch in batches)
        tokens_per_second = sum(batch.share * batch.tokens for batch in batches) / seconds
        exposed = waiting / seconds
    by_kind = {batch.kind: data_course(config, words, batch, samples[batch.kind], machine.gpus) for batch in batches}
    each = {kind: took + placed.traffic[kind].exposed for kind, took in placed.seconds.items()}
    saves = save_course(config, words, placed, machine, each or None)
    return Plan(
        experiment=experiment,
        gpu=machine.gpu,
        gpus=machine.gpus,
        mfu=words.mfu,
        strategy=placed.settings.strategy,
        steps=trainer.max_steps,
        parameters=parameter_counts(model),
        batches=batches,
        placement=placed.placement,
        placed=placed.describe(),
        memory=placed.memory,
        host=host_memory(model, placed.settings),
        usable=machine.usable,
        fits=None if machine.usable is None else placed.fits,
        fix=[] if placed.fits else find_fix(config, batches, machine),
        traffic=placed.traffic,
        exposed=exposed,
        tokens_per_second=tokens_per_second,
        days=None if seconds is None else trainer.max_steps * seconds / 86_400,
        data=by_kind,
        saves=saves,
        node=node_memory(config, batches, samples, by_kind, placed, machine),
        advice=advise(config, by_kind, samples, saves, machine),
        assumptions=_assumptions(config, words, placed, machine, [shapes.source for shapes in samples.values()]),
    )


def _machine(config: ExperimentConfig, words: PlanWords) -> Machine:
    gpu = words.gpu or (CPU if config.trainer.accelerator == "cpu" else DEFAULT_GPU)
    return Machine(
        gpu=gpu,
        gpus=words.gpus or config.trainer.processes,
        usable=None if gpu == CPU else int(GPUS[gpu].mebibytes * 2**20 * USABLE),
        mfu=words.mfu,
        node=words.node,
        bandwidth=words.leaving,
    )


def _assumptions(
    config: ExperimentConfig, words: PlanWords, placed: Placed, machine: Machine, sources: list[str]
) -> list[str]:
    ratio, peak = mean_mask_ratio(config.mask), machine.peak_flops(config.trainer.precision)
    times = "of frozen matrices 2 x, else 3 x" if config.adapter.is_on else "3 x"
    lines = [
        f"samples: {'; '.join(sources)}",
        f"operations: {times} those of a forward pass, as torch counts them; {ratio:.0%} of the visual tokens hidden",
        "memory: the longest batch, all its visual tokens hidden; attention in fused kernels; sums of tensors."
        " Measured: fp32 steps on a CPU. Not measured: CUDA's autocast, communication buffers, torch.compile",
    ]
    if peak is not None:
        lines += [
            f"saving: {words.disk} for all processes together; failures: one in {words.gpu_hours:,.0f} hours of a"
            " GPU (gpu_hours=); Young's interval: sqrt(2 x what a save costs x time between failures)",
            f"fits: at most {USABLE:.0%} of the GPU's memory; the rest is for CUDA, NCCL and gaps",
            f"time: operations / (gpus x {peak / 1e12:g} TFLOP/s x mfu {machine.mfu:g}), and waiting; recomputation,"
            " data and checkpoints are inside mfu, which is yours to state",
        ]
    if any(traffic.total for traffic in placed.traffic.values()):
        lines.append(
            f"communication: rings without latency; a GPU sends {machine.link:g} GB/s inside a node of {machine.node},"
            f" {machine.bandwidth:g} GB/s to others; a layer's hides behind its neighbour's products"
        )
    return lines
