"""What a run needs and costs, by arithmetic: no model is built, no shard opened. `lumos plan` asks for no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.config import Config, ExperimentConfig, load_experiment
from experiments.plan.batches import BatchPlan, batch_plan, mean_mask_ratio, sample_shapes
from experiments.plan.memory import check_shards, find_fix, most_bytes, peak_memory, step_settings, strategy_of
from experiments.plan.words import CPU, GPUS, USABLE, PlanWords
from lumos_pl.errors import ConfigError
from lumos_pl.models.memory import Moment, ParameterCounts, host_memory, parameter_counts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `lumos plan` says.

    Args:
        memory: bytes per GPU by moment and component, for the batch that takes the most.
        host: bytes of the host's memory per GPU by component: of fsdp2.
        usable: bytes of the GPU that count as free; None on a CPU.
        fix: overrides that make it fit: none needed is empty, None is none found.
        tokens_per_second, days: of all GPUs; None on a CPU.
    """

    experiment: str
    gpu: str
    gpus: int
    mfu: float
    strategy: str
    steps: int
    parameters: ParameterCounts
    batches: list[BatchPlan]
    memory: dict[Moment, dict[str, int]]
    host: dict[str, int]
    usable: int | None
    fits: bool | None
    fix: list[str] | None
    tokens_per_second: float | None
    days: float | None
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
    trainer = config.trainer
    gpu = words.gpu or (CPU if trainer.accelerator == "cpu" else "h100-80g")
    gpus = words.gpus or trainer.processes
    check_shards(config, gpus)
    samples = {kind: sample_shapes(config, words, kind) for kind in sorted(set(config.data.pattern))}
    batches = [batch_plan(config, kind, shapes.weights, gpus) for kind, shapes in samples.items()]
    memory = peak_memory(config, batches, gpu, gpus)
    usable = None if gpu == CPU else int(GPUS[gpu].mebibytes * 2**20 * USABLE)
    fix: list[str] | None = []
    if usable is not None and most_bytes(memory) > usable:
        fix = find_fix(config, batches, gpu, gpus, usable)
    peak = _peak_flops(gpu, trainer.precision)
    seconds = tokens_per_second = None
    if peak is not None:
        # of a step, the kinds by their share
        seconds = sum(batch.share * batch.flops.total for batch in batches) / (gpus * peak * words.mfu)
        tokens_per_second = sum(batch.share * batch.tokens for batch in batches) / seconds
    return Plan(
        experiment=experiment,
        gpu=gpu,
        gpus=gpus,
        mfu=words.mfu,
        strategy=strategy_of(config, gpus) + (f", shards over {trainer.shard_size}" if trainer.shard_size else ""),
        steps=trainer.max_steps,
        parameters=parameter_counts(config.model.build(config.layout.build())),
        batches=batches,
        memory=memory,
        host=host_memory(config.model.build(config.layout.build()), step_settings(config, gpu, gpus)),
        usable=usable,
        fits=None if usable is None else most_bytes(memory) <= usable,
        fix=fix,
        tokens_per_second=tokens_per_second,
        days=None if seconds is None else trainer.max_steps * seconds / 86_400,
        assumptions=_assumptions(config, words, gpu, [shapes.source for shapes in samples.values()]),
    )


def _peak_flops(gpu: str, precision: str) -> float | None:
    if gpu == CPU:
        return None
    return 1e12 * (GPUS[gpu].bf16 if precision == "bf16-mixed" else GPUS[gpu].fp32)


def _assumptions(config: ExperimentConfig, words: PlanWords, gpu: str, sources: list[str]) -> list[str]:
    ratio, peak = mean_mask_ratio(config.mask), _peak_flops(gpu, config.trainer.precision)
    lines = [
        f"samples: {'; '.join(sources)}",
        f"operations: 3 x those of a forward pass, as torch counts them; {ratio:.0%} of the visual tokens hidden",
        "memory: the longest batch, all its visual tokens hidden; attention in fused kernels; sums of tensors."
        " Measured: fp32 steps on a CPU. Not measured: CUDA's autocast, communication buffers, torch.compile",
    ]
    if peak is not None:
        lines += [
            f"fits: at most {USABLE:.0%} of the GPU's memory; the rest is for CUDA, NCCL and gaps",
            f"time: operations / (gpus x {peak / 1e12:g} TFLOP/s x mfu {words.mfu:g}); recomputation, communication,"
            " data and checkpoints are inside mfu, which is yours to state",
        ]
    return lines
