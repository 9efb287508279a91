"""What a run needs and costs, by arithmetic: no model is built, no shard opened. `lumos plan` asks for no GPU."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_modules.config import SYNTHETIC
from data_modules.manifest import MANIFEST_FILE, Manifest
from data_modules.shard_folders import join_manifests, shard_folders
from data_modules.synthetic import synthetic_shards
from experiments.config import Config, ExperimentConfig, TrainerConfig, load_experiment
from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.masking import MaskConfig, schedule_ratio
from lumos_pl.models.config import Recomputed
from lumos_pl.models.flops import Flops, forward_flops
from lumos_pl.models.memory import Moment, ParameterCounts, StepSettings, host_memory, parameter_counts, step_memory
from lumos_pl.spans import SequenceSpans


@dataclass(frozen=True)
class Gpu:
    """Memory as `nvidia-smi` shows it; dense peaks without sparsity, in TFLOP/s."""

    mebibytes: int
    bf16: float
    fp32: float


# Peaks: NVIDIA's data sheets of H100, H200 and A100 (SXM) and the Ada white paper (bf16 summed in fp32); H20's
# as its press reports give them.
GPUS = {
    "h20-96g": Gpu(97_871, 148, 44),
    "h100-80g": Gpu(81_559, 989, 67),
    "h200-141g": Gpu(143_771, 989, 67),
    "a100-80g": Gpu(81_920, 312, 19.5),
    "4090-24g": Gpu(24_564, 165, 82.6),
}
CPU = "cpu"
USABLE = 0.9  # of a GPU's memory; the rest is CUDA's, NCCL's, and lost between the allocator's blocks
FALLBACK_SIZES = {"256p": (448, 256), "384p": (672, 384)}  # landscape sizes of the recipe, by the root's name
FALLBACK_TEXT = 200  # ids of a prompt with a long caption


@dataclass(frozen=True, kw_only=True)
class PlanWords:
    """The plan's own key=value words.

    Args:
        gpu: one of `GPUS`, or `cpu` (memory only). Null: h100-80g, or cpu where the experiment runs on it.
        gpus: processes in all; null: as the experiment says.
        mfu: share of the GPUs' peak that the model's own operations reach.
        size: WIDTHxHEIGHT of every sample; null: from the shards' manifest.
        text: ids of every text; null: from the manifest.
    """

    gpu: str | None = None
    gpus: int | None = None
    mfu: float = 0.4
    size: str | None = None
    text: int | None = None

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu not in (CPU, *GPUS):
            raise ConfigError("unknown GPU", where="gpu", got=self.gpu, expected=", ".join((CPU, *GPUS)))
        if self.gpus is not None and not 1 <= self.gpus <= 10**6:
            raise ConfigError("out of range", where="gpus", got=self.gpus, expected="1 to 1000000")
        if not 0 < self.mfu <= 1:
            raise ConfigError("out of range", where="mfu", got=self.mfu, expected="above 0, at most 1")
        if self.text is not None and self.text < 0:
            raise ConfigError("out of range", where="text", got=self.text, expected="0 or more")

    @classmethod
    def parse(cls, words: Sequence[str]) -> PlanWords:
        try:
            merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.from_dotlist(list(words)))
            parsed: PlanWords = OmegaConf.to_object(merged)  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise ConfigError("value does not fit", where=error.full_key, got=str(error).splitlines()[0]) from None
        return parsed


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The optimizer steps of one kind, over all GPUs; means over the shapes that occur.

    Args:
        share: of the run's steps.
        sample_tokens, samples: of one sample; of a step.
        flops: of a step, forward and backward.
        longest: the batch of one GPU that takes the most memory.
    """

    kind: str
    share: float
    sample_tokens: float
    samples: float
    tokens: float
    flops: Flops
    longest: tuple[SequenceSpans, ...]


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
    _check_shards(config, gpus)
    samples = {kind: _sample_shapes(config, words, kind) for kind in sorted(set(config.data.pattern))}
    batches = [_batch_plan(config, kind, shapes.weights, gpus) for kind, shapes in samples.items()]
    memory = _peak_memory(config, batches, gpu, gpus)
    usable = None if gpu == CPU else int(GPUS[gpu].mebibytes * 2**20 * USABLE)
    fix: list[str] | None = []
    if usable is not None and _total(memory) > usable:
        fix = _fix(config, batches, gpu, gpus, usable)
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
        strategy=_strategy(config, gpus) + (f", shards over {trainer.shard_size}" if trainer.shard_size else ""),
        steps=trainer.max_steps,
        parameters=parameter_counts(config.model.build(config.layout.build())),
        batches=batches,
        memory=memory,
        host=host_memory(config.model.build(config.layout.build()), _step_settings(config, gpu, gpus)),
        usable=usable,
        fits=None if usable is None else _total(memory) <= usable,
        fix=fix,
        tokens_per_second=tokens_per_second,
        days=None if seconds is None else trainer.max_steps * seconds / 86_400,
        assumptions=_assumptions(config, words, gpu, [shapes.source for shapes in samples.values()]),
    )


# -- samples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shapes:
    """The samples of one kind: each shape's share of them, and where that is known from."""

    weights: dict[SequenceSpans, float]
    source: str


def _sample_shapes(config: ExperimentConfig, words: PlanWords, kind: str) -> _Shapes:
    layout, frames = config.layout.build(), config.data.source(kind).frames
    manifest = None if words.size else _manifest(config, layout, kind)
    counted: dict[SequenceSpans, float] = defaultdict(float)
    if manifest is not None:
        samples = Counter(chain.from_iterable(zip(e.shapes, e.text_lengths, strict=True) for e in manifest.shards))
        for (shape, text), count in samples.items():
            t, h, w = manifest.shapes[shape]
            n_text = text if words.text is None else words.text  # else as many as the caption has bytes
            spans = SequenceSpans(layout.prefix_length(n_text), min(t, layout.latent_frames(frames)), h, w)
            counted[spans] += count / manifest.n_samples
        source = f"{kind}s as the manifest has them" + (" (texts: upper bounds)" if words.text is None else "")
    else:
        (width, height), n_text = _size(config, words), FALLBACK_TEXT if words.text is None else words.text
        rows, cols = layout.latent_size(width, height)
        counted[SequenceSpans(layout.prefix_length(n_text), layout.latent_frames(frames), rows, cols)] = 1.0
        source = f"{kind}s of {width}x{height} px, {frames} frames, {n_text} ids of text"
    surest: Iterable[SequenceSpans] = counted
    if manifest is not None and words.text is None:
        # A caption may have far fewer ids than bytes: what is refused does not fit without it either, as in training.
        surest = (replace(spans, prefix=layout.prefix_length(None)) for spans in counted)
    longest = max(spans.length for spans in surest)
    if longest > config.model.max_length:
        raise ConfigError(
            "clips longer than the model's context",
            where=f"data.{kind}.frames",
            got=f"{frames} frames, {longest} tokens",
            expected=f"at most {config.model.max_length} tokens (model.max_length)",
            fix="lower it, use smaller pictures, or raise the context",
        )
    return _Shapes(counted, source)


def _manifest(config: ExperimentConfig, layout: TokenLayout, kind: str) -> Manifest | None:
    """What the run would read, if it is there."""
    data = config.data
    if data.root is None:
        return None
    if data.root == SYNTHETIC:
        return synthetic_shards(
            data.synthetic, layout, kind=kind, split="train", frames=data.source(kind).frames
        ).manifest
    there = [folder for folder in shard_folders(data.root, kind) if (folder / MANIFEST_FILE).is_file()]
    return join_manifests([Manifest.read(folder) for folder in there]) if there else None


def _size(config: ExperimentConfig, words: PlanWords) -> tuple[int, int]:
    """Width and height in px without shards to ask."""
    if words.size is None:
        name = Path(config.data.root or "").name
        if name in FALLBACK_SIZES:
            return FALLBACK_SIZES[name]
        raise ConfigError("no shards to take the size from", file=config.data.root, fix="add size=WIDTHxHEIGHT")
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", words.size)
    if match is None:
        raise ConfigError("unknown size", where="size", got=words.size, expected="WIDTHxHEIGHT, e.g. 448x256")
    return int(match[1]), int(match[2])


def _batch_plan(config: ExperimentConfig, kind: str, weights: dict[SequenceSpans, float], gpus: int) -> BatchPlan:
    source, model = config.data.source(kind), config.model.build(config.layout.build())

    def batch(spans: SequenceSpans) -> tuple[SequenceSpans, ...]:
        """One GPU's batch of samples alike."""
        fitting = source.max_tokens // spans.length if source.max_tokens else source.batch_size
        return (spans,) * max(1, min(source.batch_size, fitting))

    ratio, copies = mean_mask_ratio(config.mask), gpus * config.trainer.accumulate
    samples = tokens = body = attention = head = 0.0
    for spans, weight in weights.items():
        alike = batch(spans)
        flops = forward_flops(model, alike, round(ratio * _visual_tokens(alike)))
        times = weight * copies
        samples += times * len(alike)
        tokens += times * len(alike) * spans.length
        body, attention, head = (
            body + times * flops.body,
            attention + times * flops.attention,
            head + times * flops.head,
        )
    return BatchPlan(
        kind=kind,
        share=config.data.pattern.count(kind) / len(config.data.pattern),
        sample_tokens=sum(weight * spans.length for spans, weight in weights.items()),
        samples=samples,
        tokens=tokens,
        flops=Flops(body=round(3 * body), attention=round(3 * attention), head=round(3 * head)),
        longest=max(map(batch, weights), key=lambda alike: sum(spans.length for spans in alike)),
    )


def _visual_tokens(batch: Sequence[SequenceSpans]) -> int:
    return sum(spans.frames * spans.rows * spans.cols for spans in batch)


def mean_mask_ratio(mask: MaskConfig) -> float:
    """Expected share of hidden tokens: over u ~ U(0, 1), by a sum of a thousand."""
    drawn = [max(mask.min_ratio, schedule_ratio(mask.schedule, (i + 0.5) / 1000)) for i in range(1000)]
    mean = sum(drawn) / len(drawn)
    return (mean + 1) / 2 if mask.kind == "tube_decay" else mean  # which rises to 1 in the last frame


# -- memory --------------------------------------------------------------------------------------


def _strategy(config: ExperimentConfig, gpus: int) -> Literal["single", "ddp", "fsdp2"]:
    if config.trainer.strategy == "fsdp2":
        return "fsdp2"
    return "ddp" if gpus > 1 else "single"


def _check_shards(config: ExperimentConfig, gpus: int) -> None:
    """`gpus=` may say other than the experiment, which was checked against itself."""
    size = config.trainer.shard_size
    if size is not None and gpus % size:
        raise ConfigError(
            "does not divide the GPUs", where="trainer.shard_size", got=size, expected=f"a divisor of {gpus}"
        )


def _step_settings(config: ExperimentConfig, gpu: str, gpus: int) -> StepSettings:
    return StepSettings(
        mixed=config.trainer.precision == "bf16-mixed",
        recomputed=config.model.activation_checkpointing,
        strategy=_strategy(config, gpus),
        n_ranks=config.trainer.shard_size or gpus,
        cpu_offload=config.trainer.cpu_offload,
        accumulate=config.trainer.accumulate,
        optimizer=config.optimizer.kind,
        ema=config.optimizer.ema_decay > 0,
        chunk_size=config.loss.chunk_size,
        cuda=gpu != CPU,
    )


def _peak_memory(
    config: ExperimentConfig, batches: Sequence[BatchPlan], gpu: str, gpus: int
) -> dict[Moment, dict[str, int]]:
    """Of the batch that takes the most, its visual tokens all hidden, as a ratio of 1 has it."""
    settings = _step_settings(config, gpu, gpus)
    model = config.model.build(config.layout.build())
    plans = []
    for batch in batches:
        n_tokens = sum(spans.length for spans in batch.longest)
        plans.append(step_memory(model, settings, n_tokens=n_tokens, n_targets=_visual_tokens(batch.longest)))
    return max(plans, key=_total)


def _total(memory: dict[Moment, dict[str, int]]) -> int:
    return max(sum(components.values()) for components in memory.values())


def check_memory(config: ExperimentConfig) -> None:
    """Refuse a run that this machine cannot hold, before it takes any memory; the data have to be there.

    The limit is all that the GPU, or the machine, has: what is refused has no chance.

    Raises:
        ConfigError: the computed peak of a process is above it.
    """
    trainer = config.trainer
    gpu, gpus = CPU if trainer.works_on_cpu else "h100-80g", trainer.processes
    kinds = sorted(set(config.data.pattern))
    batches = [_batch_plan(config, kind, _sample_shapes(config, PlanWords(), kind).weights, gpus) for kind in kinds]
    peak, limit = _total(_peak_memory(config, batches, gpu, gpus)), _memory_here(trainer)
    if peak <= limit:
        return
    fix = _fix(config, batches, gpu, gpus, limit)
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


def _fix(config: ExperimentConfig, batches: list[BatchPlan], gpu: str, gpus: int, limit: int) -> list[str] | None:
    """The first overrides that fit into `limit` bytes; None: none do."""
    thrifty = _thriftier(config, batches, gpus)
    return next((f for f, c, b in thrifty if _total(_peak_memory(c, b, gpu, gpus)) <= limit), None)


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


# -- words ---------------------------------------------------------------------------------------


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
