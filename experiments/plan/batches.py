"""What a run's batches are made of, and the operations they take: from the shards' manifest, or from what is said."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_modules.config import SYNTHETIC, NamedSource
from data_modules.readers import open_shards
from data_modules.shards.folders import join_manifests, shard_folders
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.metadata import Columns, read_columns
from data_modules.shards.places import is_there
from data_modules.synthetic import synthetic_shards
from data_modules.token_data import check_context
from experiments.config import ExperimentConfig
from experiments.plan.words import PlanWords
from lumos_pl.batch import KINDS
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.masking import MaskConfig, schedule_ratio
from lumos_pl.models.flops import Flops, forward_flops, training_flops
from lumos_pl.models.parameters import adapter_count
from lumos_pl.spans import SequenceSpans

FALLBACK_SIZES = {"256p": (448, 256), "384p": (672, 384)}  # landscape sizes of the recipe, by the root's name
FALLBACK_TEXT = 200  # ids of a prompt with a long caption


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The optimizer steps of one kind, over all GPUs; means over the shapes that occur.

    Args:
        kind: `image` or `video`, or the name of a mixture's source.
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

    @property
    def title(self) -> str:
        return f"{self.kind}s" if self.kind in KINDS else self.kind


@dataclass(frozen=True)
class SampleShapes:
    """The samples of one kind: each shape's share of them, where that is known from, and how many a manifest has."""

    weights: dict[SequenceSpans, float]
    source: str
    n_samples: int | None = None
    n_shards: int | None = None


def sample_shapes(
    config: ExperimentConfig, words: PlanWords, kind: str, manifest: Manifest | None = None
) -> SampleShapes:
    """
    Args:
        kind: `image` or `video`, or the name of a mixture's source.
        manifest: of the run's shards, where they are open; else it is read, if it is there.
    """
    read = config.data.named(kind)
    layout, frames, title = config.layout.build(), read.config.frames, f"{kind}s" if kind in KINDS else kind
    if manifest is None and not words.size:
        manifest = _manifest(config, layout, read)
    counted: dict[SequenceSpans, float] = defaultdict(float)
    if manifest is not None:
        samples = manifest.table.counts()
        n_samples = sum(samples.values())
        for (shape, text), count in samples.items():
            t, h, w = manifest.shapes[shape]
            n_text = text if words.text is None else words.text  # else as many as the caption has bytes
            spans = SequenceSpans(layout.prefix_length(n_text), min(t, layout.latent_frames(frames)), h, w)
            counted[spans] += count / n_samples
        if n_samples < manifest.n_samples:
            title = f"{n_samples} of {manifest.n_samples} {title}, by data.where,"
        source = f"{title} as the manifest has them" + (" (texts: upper bounds)" if words.text is None else "")
    else:
        (width, height), n_text = _size(read, words), FALLBACK_TEXT if words.text is None else words.text
        try:
            rows, cols = layout.latent_size(width, height)
        except DataError as error:
            raise ConfigError(**error.parts | {"where": "size"}) from None
        counted[SequenceSpans(layout.prefix_length(n_text), layout.latent_frames(frames), rows, cols)] = 1.0
        source = f"{title} of {width}x{height} px, {frames} frames, {n_text} ids of text"
    surest: Iterable[SequenceSpans] = counted
    if manifest is not None and words.text is None:
        # A caption may have far fewer ids than bytes: what is refused does not fit without it either, as in training.
        surest = (replace(spans, prefix=layout.prefix_length(None)) for spans in counted)
    check_context(read.key, frames, max(spans.length for spans in surest), config.model.max_length)
    if manifest is None:
        return SampleShapes(counted, source)
    return SampleShapes(counted, source, n_samples, len(manifest.shards))


def _manifest(config: ExperimentConfig, layout: TokenLayout, read: NamedSource) -> Manifest | None:
    """What the run would read of a source, if it is there."""
    data, kind = config.data.alone(read), read.kind
    if read.root is None:
        return None
    if read.root == SYNTHETIC:
        return synthetic_shards(data.synthetic, layout, kind=kind, split="train", frames=read.config.frames).manifest
    if data.reader != "shards":
        return open_shards(read.root, kind, data, layout).manifest
    there = [folder for folder in shard_folders(read.root, kind) if is_there(folder / MANIFEST_FILE)]
    if not there:
        return None
    manifests = [Manifest.read(folder) for folder in there]
    whole, where = join_manifests(manifests), data.condition
    if where is None:
        return whole
    columns = [read_columns(folder, manifest) for folder, manifest in zip(there, manifests, strict=True)]
    return whole.selecting(Columns.joined(columns).select(where))


def _size(read: NamedSource, words: PlanWords) -> tuple[int, int]:
    """Width and height in px without shards to ask."""
    if words.size is None:
        name = Path(read.root or "").name
        if name in FALLBACK_SIZES:
            return FALLBACK_SIZES[name]
        raise ConfigError("no shards to take the size from", file=read.root, fix="add size=WIDTHxHEIGHT")
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", words.size)
    if match is None:
        raise ConfigError("unknown size", where="size", got=words.size, expected="WIDTHxHEIGHT, e.g. 448x256")
    return int(match[1]), int(match[2])


def batch_plan(config: ExperimentConfig, kind: str, weights: dict[SequenceSpans, float], gpus: int) -> BatchPlan:
    source, model = config.data.source(kind), config.model.build(config.layout.build())

    def batch(spans: SequenceSpans) -> tuple[SequenceSpans, ...]:
        """One GPU's batch of samples alike."""
        fitting = source.max_tokens // spans.length if source.max_tokens else source.batch_size
        return (spans,) * max(1, min(source.batch_size, fitting))

    ratio, copies = mean_mask_ratio(config.mask), gpus * config.trainer.accumulate
    samples = tokens = body = attention = head = 0.0
    n_adapter = adapter_count(model, config.adapter) if config.adapter.is_on else None
    for spans, weight in weights.items():
        alike = batch(spans)
        forward = forward_flops(model, alike, round(ratio * count_visual_tokens(alike)))
        n_tokens = sum(each.length for each in alike)
        codes = bool(config.adapter.codes)
        flops = training_flops(forward, n_tokens=n_tokens, n_adapter=n_adapter, head_gradient=codes)
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
        share=config.data.shares(config.trainer.max_steps)[kind],
        sample_tokens=sum(weight * spans.length for spans, weight in weights.items()),
        samples=samples,
        tokens=tokens,
        flops=Flops(body=round(body), attention=round(attention), head=round(head)),
        longest=max(map(batch, weights), key=lambda alike: sum(spans.length for spans in alike)),
    )


def count_visual_tokens(batch: Sequence[SequenceSpans]) -> int:
    return sum(spans.latent_frames * spans.rows * spans.cols for spans in batch)


def mean_mask_ratio(mask: MaskConfig) -> float:
    """Expected share of hidden tokens: over u ~ U(0, 1), by a sum of a thousand."""
    drawn = [max(mask.min_ratio, schedule_ratio(mask.schedule, (i + 0.5) / 1000)) for i in range(1000)]
    mean = sum(drawn) / len(drawn)
    return (mean + 1) / 2 if mask.kind == "tube_decay" else mean  # which rises to 1 in the last frame
