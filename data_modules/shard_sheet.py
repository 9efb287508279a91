"""What a shard folder holds, as a picture and in a few words: `lumos shards show`."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_modules.manifest import Manifest
from data_modules.shard_sample import ShardSample
from data_modules.shards import read_shard
from lumos_pl.errors import ConfigError
from lumos_pl.tokenizers.code_colors import code_colors

_ROW_INCHES, _WORDS_INCHES, _FRAME_INCHES = 1.9, 3.2, 2.7
_CAPTION_CHARACTERS = 160


def describe_shards(folder: Path) -> dict[str, Any]:
    """A folder's content in numbers, from its manifest alone; plain values, ready for JSON."""
    manifest = Manifest.load(folder)
    counts = Counter(manifest.shapes[index] for entry in manifest.shards for index in entry.shapes)
    return {
        "samples": manifest.n_samples,
        "shards": len(manifest.shards),
        "bytes": sum(entry.n_bytes for entry in manifest.shards),
        "codes": sum(t * h * w * count for (t, h, w), count in counts.items()),
        "shapes": {"x".join(map(str, shape)): count for shape, count in counts.most_common()},
        "longest_text": max(length for entry in manifest.shards for length in entry.text_lengths),
        "tokenizer": manifest.tokenizer,
        "codebook_size": manifest.codebook_size,
        "strides": list(manifest.strides),
        "fingerprint": manifest.fingerprint,
    }


def shard_sheet(folder: Path, *, out: Path, samples: int = 12) -> Path:
    """Draw samples from all over the folder, one a row: first, middle and last latent frame in false colour.

    Args:
        out: the PNG to write.
        samples: rows at most; evenly spaced over the data set.
    Returns:
        `out`.
    """
    if samples < 1:
        raise ConfigError("no samples to show", where="samples", got=samples, expected="at least 1")
    manifest = Manifest.load(folder)
    shown = _spaced_samples(folder, manifest, samples)
    frames = [_shown_frames(sample) for sample in shown]
    widths = [_WORDS_INCHES] + [_FRAME_INCHES] * max(map(len, frames))
    figure = Figure(figsize=(sum(widths), _ROW_INCHES * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(widths), squeeze=False, width_ratios=widths)
    for row, sample, indices in zip(axes, shown, frames, strict=True):
        for axis in row:
            axis.axis("off")
        row[0].text(0, 0.5, _words(sample), va="center", fontsize=8, parse_math=False, transform=row[0].transAxes)
        for axis, index in zip(row[1:], indices, strict=False):
            axis.imshow(code_colors(sample.codes[index], manifest.codebook_size), interpolation="nearest")
            axis.set_title(f"latent frame {index}", fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, format="png")
    return out


def _spaced_samples(folder: Path, manifest: Manifest, count: int) -> list[ShardSample]:
    places = [(shard, i) for shard, entry in enumerate(manifest.shards) for i in range(entry.n_samples)]
    wanted = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    by_shard: dict[int, list[int]] = {}
    for place in wanted:
        shard, i = places[place]
        by_shard.setdefault(shard, []).append(i)
    samples = []
    for shard, indices in by_shard.items():
        content = read_shard(folder, manifest, shard)
        samples += [content[i] for i in indices]
    return samples


def _shown_frames(sample: ShardSample) -> list[int]:
    """First, middle and last, each once."""
    last = len(sample.codes) - 1
    return sorted({0, last // 2, last})


def _words(sample: ShardSample) -> str:
    if isinstance(sample.text, str):
        caption = textwrap.shorten(sample.text, _CAPTION_CHARACTERS, placeholder=" ...")
    else:
        caption = f"{len(sample.text)} text ids"
    t, h, w = sample.codes.shape
    size = f"{sample.width}x{sample.height} px, {sample.duration} s at {sample.fps} fps"
    lines = [sample.key, caption, f"codes {t}x{h}x{w}", size]
    return "\n".join(textwrap.fill(line, 44) for line in lines)
