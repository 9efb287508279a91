"""What comes of a run from its first step to its last: data, checkpoints, disk, host memory, stops and failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from data_modules.stream.joint import Alternation
from data_modules.stream.plan import MAX_DEFAULT_STREAMS
from experiments.config import ExperimentConfig
from experiments.plan.batches import BatchPlan, SampleShapes, batch_plan
from experiments.plan.placement import Placed, place
from experiments.plan.words import Machine, PlanWords
from lumos_pl.models.memory import host_memory, saved_bytes

HOST_LINK = 25e9  # bytes per second that a GPU copies into pinned memory: PCIe 4.0 x16 less what headers take
PROCESS_BYTES, WORKER_BYTES = 1 << 29, 1 << 28  # measured on a CPU: a training process, and a data worker's own
MANIFEST_BYTES = 37  # of a process, by sample: 2.2 GB for 60 million
TAR_BYTES = 3 << 10  # of a shard, by sample, besides its codes: headers of three members, each in blocks of 512
DEFAULT_SHARD = 64  # samples that `lumos tokenize` puts into one
GOOD_WAITING = 0.1  # of the time, for other GPUs: above it, larger steps are worth a thought
PREFETCHED = 2  # batches that torch has each worker make ahead


@dataclass(frozen=True, kw_only=True)
class DataCourse:
    """What a run reads of one kind, or of one source of a mixture; None: how many samples there are is not known.

    Args:
        samples: that there are.
        trained: appearances of samples in all of the run's steps.
        epochs: times that each is trained on.
        seen: share of them that is trained on at all.
        streams: see `SourceConfig`.
        readers: data workers that read each stream, and so each shard.
    """

    samples: int | None
    trained: float
    epochs: float | None
    seen: float | None
    streams: int
    readers: float


@dataclass(frozen=True, kw_only=True)
class SaveCourse:
    """What saving takes. Of a CPU's run there are bytes only.

    Args:
        n_bytes: of a checkpoint.
        blocking: seconds that the training waits for one.
        seconds: until it is complete, digests not counted.
        stop: seconds from a signal to the end: the longest step, and a whole checkpoint.
        grace: seconds that the run is given for that; None: it does not say.
        every: steps between two.
        kept: the most checkpoints that there are at once, one that is being written among them.
        disk: bytes that these take.
        failures: of GPUs that are to be expected in the run.
        lost: steps that a failure costs on average.
        best_every: steps between two checkpoints that cost the least, saving and doing again together.
    """

    n_bytes: int
    every: int
    kept: int
    disk: int
    blocking: float | None = None
    seconds: float | None = None
    stop: float | None = None
    grace: float | None = None
    failures: float | None = None
    lost: float | None = None
    best_every: int | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A setting that would suit these machines better, and why."""

    setting: str
    why: str


def data_course(
    config: ExperimentConfig, words: PlanWords, batch: BatchPlan, shapes: SampleShapes, ranks: int
) -> DataCourse:
    kind, source = batch.kind, config.data.source(batch.kind)
    samples = shapes.n_samples or words.n_samples
    trained = config.trainer.max_steps * batch.share * batch.samples
    streams = source.streams or _default_streams(shapes.n_shards)
    return DataCourse(
        samples=samples,
        trained=trained,
        epochs=None if samples is None else trained / samples,
        seen=None if samples is None else min(1.0, trained / samples),
        streams=streams,
        readers=readers_of_a_stream(config, kind, streams, ranks),
    )


def _default_streams(n_shards: int | None) -> int:
    most = MAX_DEFAULT_STREAMS if n_shards is None else min(n_shards, MAX_DEFAULT_STREAMS)
    return int(2 ** (most.bit_length() - 1))


def readers_of_a_stream(config: ExperimentConfig, kind: str, streams: int, ranks: int) -> float:
    """Data workers, of all ranks, that take batches of a stream, on average: 1 where the streams can be divided.

    Counted as the workers take their batches, see `training_order`, until they do so again from the beginning. The
    steps of a mixture's source come now at one worker's turn and now at another's: all of those count.
    """
    per_step, workers = config.trainer.accumulate * ranks, max(1, config.data.num_workers)
    if config.data.sources:
        turns = [step * config.trainer.accumulate for step in range(workers)]
        places = ((index % streams, index % per_step) for index in range(math.lcm(streams, per_step)))
        taken = {(at, n % ranks, (turn + n // ranks) % workers) for at, n in places for turn in turns}
        return len(taken) / streams
    alternation = Alternation(pattern=config.data.pattern, per_step=per_step)
    steps = len(config.data.pattern) * workers * (streams // math.gcd(streams, per_step))
    readers = set()
    for micro_batch in range(min(steps * per_step, 1 << 20)):
        found, index = alternation.locate(micro_batch)
        if found == kind:
            readers.add((index % streams, micro_batch % ranks, micro_batch // ranks % workers))
    return len(readers) / streams


def fitting_streams(config: ExperimentConfig, kind: str, ranks: int, n_shards: int | None) -> int | None:
    """The fewest streams, as many as by default at least, that have as few readers as can be, most often one each.

    None: there are too few shards for it.
    """
    least = MAX_DEFAULT_STREAMS if n_shards is None else min(n_shards, MAX_DEFAULT_STREAMS)
    for streams in count(-(-least // ranks) * ranks, ranks):
        if streams > (n_shards or math.inf) or streams > 16 * max(ranks, least):
            return None
        if readers_of_a_stream(config, kind, streams, ranks) == _fewest_readers(config):
            return streams
    raise AssertionError("numbers have no end")


def _fewest_readers(config: ExperimentConfig) -> int:
    """Of a stream; the steps of a mixture's source come at the turns of several workers of a rank."""
    workers = max(1, config.data.num_workers)
    return workers // math.gcd(workers, config.trainer.accumulate) if config.data.sources else 1


def save_course(
    config: ExperimentConfig, words: PlanWords, placed: Placed, machine: Machine, seconds: Mapping[str, float] | None
) -> SaveCourse:
    """
    Args:
        seconds: of a step, by kind, waiting included; None on a CPU.

    A sharded checkpoint is copied to the host's memory while the training waits, and written behind it; any other is
    written while it waits. The interval that costs least is Young's (CACM 17:9, 1974; Daly, FGCS 22:3, 2006, adds
    terms that are small where failures are hours apart): sqrt(2 x what a save costs x the time between failures).
    """
    settings, every, steps = config.checkpoint, config.checkpoint.every_n_steps, config.trainer.max_steps
    n_bytes = saved_bytes(config.model.build(config.layout.build()), placed.settings)
    newest = steps // every if every and not settings.keep else settings.keep
    stay = steps // math.lcm(settings.keep_every_n_steps, every) if every and settings.keep_every_n_steps else 0
    kept = max(1, min(newest + stay, -(-steps // every) if every else 1)) + 1
    known = SaveCourse(n_bytes=n_bytes, every=every, kept=kept, disk=kept * n_bytes)
    if seconds is None or not words.disk_rate:
        return known
    sharded = placed.settings.strategy == "fsdp2"
    written = n_bytes / words.disk_rate
    blocking = n_bytes / machine.gpus / HOST_LINK if sharded else written
    step = sum(share * seconds[kind] for kind, share in config.data.shares(steps).items())
    between = 3600 * words.gpu_hours / machine.gpus
    lost_seconds = (every or steps) * step / 2 + (written if sharded else 0)
    best = max(math.sqrt(2 * blocking * between), written) / step
    return replace(
        known,
        blocking=blocking,
        seconds=written,
        stop=max(seconds.values()) + (n_bytes / machine.gpus / HOST_LINK if sharded else 0) + written,
        grace=getattr(config.trainer, "grace_s", None),
        failures=steps * step / between,
        lost=lost_seconds / step,
        best_every=min(steps, _round(best)),
    )


def _round(steps: float) -> int:
    """To one digit, or a half of the next: a number that one remembers."""
    unit = 10 ** math.floor(math.log10(max(1.0, steps))) / 2
    return max(1, round(max(1.0, steps) / unit) * int(unit) if unit >= 1 else round(steps))


def node_memory(
    config: ExperimentConfig,
    batches: Sequence[BatchPlan],
    shapes: Mapping[str, SampleShapes],
    data: Mapping[str, DataCourse],
    placed: Placed,
    machine: Machine,
) -> dict[str, int]:
    """Bytes of the host's memory that the processes of a node take, by component; CUDA's own are not counted."""
    here, workers = min(machine.node, machine.gpus), config.data.num_workers
    nodes = -(-machine.gpus // here)
    ahead = 8 * max(sum(spans.length for spans in batch.longest) for batch in batches)  # ids of a batch, int64
    shards = sum(
        (data[kind].streams * data[kind].readers) * (config.data.source(kind).shuffle_shards + 1) * _shard_bytes(each)
        for kind, each in shapes.items()
    )
    host = host_memory(config.model.build(config.layout.build()), placed.settings)
    parts = {
        "training processes": here * PROCESS_BYTES,
        "data workers": here * workers * WORKER_BYTES,
        "manifests": here * MANIFEST_BYTES * sum(each.samples or 0 for each in data.values()),
        "shards being read": round(shards / nodes),
        "batches ahead, pinned": here * ahead * (PREFETCHED * workers + 2),
        **{component: here * n_bytes for component, n_bytes in host.items()},
    }
    return {component: n_bytes for component, n_bytes in parts.items() if n_bytes}


def _shard_bytes(shapes: SampleShapes) -> float:
    """Of a mean shard in memory: its codes of 16 bits."""
    codes = sum(weight * spans.latent_frames * spans.rows * spans.cols for spans, weight in shapes.weights.items())
    n_samples = DEFAULT_SHARD if not shapes.n_shards else (shapes.n_samples or 0) / shapes.n_shards
    return n_samples * (2 * codes + TAR_BYTES)


def advise(
    config: ExperimentConfig,
    data: Mapping[str, DataCourse],
    shapes: Mapping[str, SampleShapes],
    saves: SaveCourse,
    machine: Machine,
) -> list[Advice]:
    """What the experiment's settings should be for these machines, beside what is settled by itself."""
    found, trainer = [], config.trainer
    nodes, here = -(-machine.gpus // machine.node), min(machine.gpus, machine.node)
    if trainer.processes != machine.gpus and machine.gpus % here == 0 and machine.link is not None:
        words = f"trainer.devices={here}" + (f" trainer.num_nodes={nodes}" if nodes > 1 else "")
        found.append(Advice(setting=words, why=f"these {machine.gpus} GPUs; the experiment says {trainer.processes}"))
    for kind, course in data.items():
        fitting = fitting_streams(config, kind, machine.gpus, shapes[kind].n_shards)
        if course.readers > (fewest := _fewest_readers(config)) and fitting is not None:
            often = "once" if fewest == 1 else f"{fewest} times"
            why = f"each shard is read {often}; with {course.streams} streams {course.readers:.3g} times at the least"
            found.append(Advice(setting=f"{config.data.named(kind).key}.streams={fitting}", why=why))
    if (larger := _larger_steps(config, shapes, machine)) is not None:
        found.append(larger)
    if saves.best_every and saves.every and not saves.best_every / 3 <= saves.every <= 3 * saves.best_every:
        why = f"saving and doing again cost the least together; with {saves.every:,} a failure costs {saves.lost:,.0f}"
        found.append(Advice(setting=f"checkpoint.every_n_steps={saves.best_every}", why=f"{why} steps"))
    if saves.stop is not None and saves.grace is not None and saves.stop > saves.grace:
        why = f"a stop takes {saves.stop:,.0f} s, and has {saves.grace:g}"
        found.append(Advice(setting=f"trainer.grace_s={math.ceil(1.5 * saves.stop)}", why=why))
    return found


def waiting_share(config: ExperimentConfig, shapes: Mapping[str, SampleShapes], machine: Machine) -> float:
    """Share of a run's time in which the GPUs wait for each other, placed as suits them best; 0 on a CPU."""
    batches = [batch_plan(config, kind, each.weights, machine.gpus) for kind, each in shapes.items()]
    placed = place(config, batches, machine)
    waiting = sum(batch.share * placed.traffic[batch.kind].exposed for batch in batches if placed.traffic)
    computing = sum(batch.share * placed.seconds[batch.kind] for batch in batches if placed.traffic)
    return waiting / (waiting + computing) if waiting else 0.0


def _larger_steps(config: ExperimentConfig, shapes: Mapping[str, SampleShapes], machine: Machine) -> Advice | None:
    """The least accumulation with which the GPUs wait for each other as little as is good, where they wait more."""
    waiting = waiting_share(config, shapes, machine)
    if waiting <= GOOD_WAITING:
        return None
    for times in 2, 4, 8:
        accumulate = times * config.trainer.accumulate
        trainer = replace(config.trainer, accumulate=accumulate)
        less = waiting_share(replace(config, trainer=trainer), shapes, machine)
        if less <= min(GOOD_WAITING, 0.7 * waiting):
            why = f"GPUs wait {less:.0%} of the time instead of {waiting:.0%}; a step has {times} times the samples"
            return Advice(setting=f"trainer.accumulate={accumulate}", why=why)
    return None
