"""What a shard folder holds, as a picture and in a few words: `lumos shards show`."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_modules.manifest import Manifest
from data_modules.shard_sample import ShardSample
from data_modules.shards import read_shard
from lumos_pl.checkpoints.named import EMBEDDED
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import TakenError, make_folder, write_new
from lumos_pl.tokenizers.code_colors import code_colors
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer, makes_codes_of

_ROW_INCHES, _WORDS_INCHES, _FRAME_INCHES, _TITLE_INCHES = 1.9, 3.2, 2.7, 0.4
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


def sheet_tokenizer(folder: Path, source: str | None = None) -> VisualTokenizer | None:
    """The tokenizer that decodes a folder's shards: the one given, or the embedded one if it made them, or None.

    Args:
        source: see `load_visual_tokenizer`.
    Raises:
        ConfigError: the one given did not make them.
    """
    tokenizer = load_visual_tokenizer(source or EMBEDDED)
    made_by = Manifest.read(folder).tokenizer
    if makes_codes_of(tokenizer, made_by):
        return tokenizer
    if source is None:
        return None
    raise ConfigError(
        "these shards were made by another tokenizer",
        file=folder,
        where=f"--tokenizer {source}",
        got=tokenizer.fingerprint,
        expected=made_by,
    )


def shard_sheet(
    folder: Path, *, out: Path, named: bool = True, tokenizer: VisualTokenizer | None = None, samples: int = 12
) -> Path:
    """Paint samples from all over the folder, one a row: first, middle and last frame.

    Args:
        out: the PNG to write. A file that has the name is not replaced; the same picture is not written twice.
        named: by the user; otherwise the next free name of `out`, `NAME-2.png` and so on, is taken.
        tokenizer: the one that made the shards; None: latent frames in false colour.
        samples: rows at most; evenly spaced over the data set.
    Returns:
        the file.
    Raises:
        ConfigError: the named file is there and another.
    """
    if samples < 1:
        raise ConfigError("no samples to show", where="samples", got=samples, expected="at least 1")
    manifest = Manifest.load(folder)
    shown = _spaced_samples(folder, manifest, samples)
    pictures = [_pictures(sample, manifest, tokenizer) for sample in shown]
    widths = [_WORDS_INCHES] + [_FRAME_INCHES] * max(map(len, pictures))
    figure = Figure(figsize=(sum(widths), _ROW_INCHES * len(shown) + _TITLE_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(folder, manifest, tokenizer), fontsize=8, parse_math=False)
    axes = figure.subplots(len(shown), len(widths), squeeze=False, width_ratios=widths)
    for row, sample, titled in zip(axes, shown, pictures, strict=True):
        for axis in row:
            axis.axis("off")
        row[0].text(0, 0.5, _words(sample), va="center", fontsize=8, parse_math=False, transform=row[0].transAxes)
        for axis, (title, picture) in zip(row[1:], titled.items(), strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    make_folder(out.parent)
    others = () if named else (out.with_stem(f"{out.stem}-{number}") for number in itertools.count(2))
    for place in itertools.chain([out], others):
        try:
            write_new(place, content.getvalue())
        except TakenError:
            continue
        return place
    raise ConfigError("this file exists", file=out, where="--out", fix="give another name, or remove it")


def _title(folder: Path, manifest: Manifest, tokenizer: VisualTokenizer | None) -> str:
    if tokenizer is not None:
        return f"{folder.name}: {manifest.n_samples} samples, decoded by {manifest.tokenizer}"
    note = f"latent frames in false colour: --tokenizer SOURCE, that of {manifest.tokenizer}, shows the pictures"
    return f"{folder.name}: {manifest.n_samples} samples\n{note}"


def _pictures(
    sample: ShardSample, manifest: Manifest, tokenizer: VisualTokenizer | None
) -> dict[str, NDArray[np.uint8]]:
    """First, middle and last frame, each once, by title."""
    if tokenizer is None:
        colours = code_colors(sample.codes, manifest.codebook_size)
        return {f"latent frame {index}": colours[index] for index in _ends(len(colours))}
    frames = tokenizer.decode(torch.from_numpy(sample.codes.astype(np.int64))[None])[0].cpu().numpy()
    return {f"frame {index}": frames[index] for index in _ends(sample.frames)}


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


def _ends(length: int) -> list[int]:
    """First, middle and last index, each once."""
    return sorted({0, (length - 1) // 2, length - 1})


def _words(sample: ShardSample) -> str:
    if isinstance(sample.text, str):
        caption = textwrap.shorten(sample.text, _CAPTION_CHARACTERS, placeholder=" ...")
    else:
        caption = f"{len(sample.text)} text ids"
    t, h, w = sample.codes.shape
    size = f"{sample.width}x{sample.height} px, {sample.duration} s at {sample.fps} fps"
    lines = [sample.key, caption, f"codes {t}x{h}x{w}", size]
    return "\n".join(textwrap.fill(line, 44) for line in lines)
