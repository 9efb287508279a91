"""A training step of images and clips of many shapes, packed, against a batch padded to its longest: the same loss.

python -m bench.packing ours|padded [--samples N] [--size SIZE]

The shapes are those of 256p at a quarter of its width and height: half of the samples images, half of 2 to 7 latent
frames. Also `budget_unused`: the share of the token budget that planned batches of the same set at its full size leave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.measure import measure_here
from data_modules.config import SourceConfig
from data_modules.media.size_buckets import Size as PixelSize
from data_modules.media.size_buckets import aspect_buckets
from data_modules.shards.manifest import Manifest
from data_modules.shards.table import ShardEntry
from data_modules.stream.plan import StreamPlan
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.layout import TokenSequence, compact_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention import AttentionCall, BlockCausalAttention, block_causal_calls
from lumos_pl.models.config import ModelConfig, Size
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.seeding import generator

LAYOUT = compact_layout(codebook_size=1000)
BUDGET = 65_536
LATENT_FRAMES = 7  # 2 s


def draw_shapes(n: int, sizes: Sequence[PixelSize]) -> list[tuple[int, tuple[int, int, int]]]:
    """Ids of text and latent shape of `n` samples, images and videos in turn."""
    draws = torch.randint(0, 1 << 30, (n, 3), generator=generator(0, "packing")).tolist()
    shapes = []
    for number, (text, frames, size) in enumerate(draws):
        width, height = sizes[size % len(sizes)]
        t = 1 if number % 2 else 2 + frames % (LATENT_FRAMES - 1)
        shapes.append((20 + text % 200, (t, height // LAYOUT.strides[1], width // LAYOUT.strides[2])))
    return shapes


def budget_unused(samples: int) -> float:
    drawn = draw_shapes(samples, aspect_buckets(352))
    shapes = sorted({shape for _, shape in drawn})
    entry = ShardEntry(
        file="made-up.tar",
        n_samples=samples,
        n_bytes=1,
        sha256="",
        shapes=tuple(shapes.index(shape) for _, shape in drawn),
        text_lengths=tuple(text for text, _ in drawn),
    )
    manifest = Manifest(
        tokenizer="made-up",
        codebook_size=LAYOUT.codebook_size,
        strides=LAYOUT.strides,
        shapes=tuple(shapes),
        shards=(entry,),
    )
    config = SourceConfig(batch_size=10_000, max_tokens=BUDGET, frames=4 * LATENT_FRAMES - 3, bucket=False)
    plan = StreamPlan(manifest, config, LAYOUT, kind="video", seed=0)
    batches = list(islice(plan.stream(0), samples // 10))

    def length(place: int) -> int:
        text, (t, h, w) = drawn[place]
        return LAYOUT.prefix_length(text) + t * (h * (w + 1) + 4)

    used = sum(length(sample.place) for batch in batches for sample in batch.samples)
    return 1 - used / (BUDGET * len(batches))


def mixed_batch(samples: int) -> MaskedBatch:
    sequences = []
    for number, (text, shape) in enumerate(draw_shapes(samples, aspect_buckets(88, patch=8))):
        codes = torch.randint(LAYOUT.codebook_size, shape, generator=generator(0, "codes", number))
        sequences.append(TokenSequence(text_ids=(1,) * text, codes=codes, duration=1, fps=12))
    batch = pack(sequences, [str(number) for number in range(samples)], LAYOUT)
    return hide_tokens(batch, LAYOUT, MaskConfig(), seed=0)


def padded_states(net: LumosTransformer, batch: MaskedBatch) -> Tensor:
    """The decoder's states of the real tokens; each sample is followed by padding, which sees it and is not seen."""
    lengths = [spans.length for spans in batch.spans]
    longest = max(lengths)
    rows = batch.inputs.split(lengths)
    inputs = torch.cat([F.pad(row, (0, longest - len(row))) for row in rows])
    positions = torch.cat([F.pad(net.positions(s), (0, 0, 0, longest - s.length)) for s in batch.spans])
    padding = [[AttentionCall(s.length, longest)] if s.length < longest else [] for s in batch.spans]
    staircases = [block_causal_calls(s) + more for s, more in zip(batch.spans, padding, strict=True)]
    states = net.model(inputs, positions, BlockCausalAttention(batch.spans, staircases))
    return torch.cat([row[:length] for row, length in zip(states.split(longest), lengths, strict=True)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours", "padded"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--size", choices=get_args(Size), default="small")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    set_up_memory()
    compute = ModelConfig(size=options.size, max_length=65_536, attention="sdpa")
    net = LumosTransformer(compute.build(LAYOUT), compute)
    net.init_weights(0)

    def step(batch: MaskedBatch) -> float:
        states = net(batch.inputs, batch.spans) if options.way == "ours" else padded_states(net, batch)
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig())
        loss, _ = net.lm_head(states[batch.target_index], objective)
        loss.backward()
        value: float = loss.item()
        return value

    step(mixed_batch(1))
    batch = mixed_batch(options.samples)
    lengths = [spans.length for spans in batch.spans]
    notes = {
        "tokens": sum(lengths),
        "padding": 1 - sum(lengths) / (max(lengths) * len(lengths)),
        "budget_unused": budget_unused(2_000),
    }
    print(json.dumps(measure_here(lambda: step(batch)) | {"notes": notes}))


if __name__ == "__main__":
    main()
