"""What a shard folder holds, as a picture and in a few words: `lumos shards show`."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_modules.shards.manifest import Manifest, Shape
from data_modules.shards.metadata import read_columns
from data_modules.shards.places import Place
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import read_shard
from lumos_pl.checkpoints.named import EMBEDDED
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import TakenError, make_folder, write_new
from lumos_pl.machinery.counted import counted
from lumos_pl.tokenizers.code_colors import code_colors
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer, makes_codes_of

PAPER, INK, SOFT = "#faf9f6", "#1e1c19", "#6a655c"  # by day, of experiments/play/page/look.css
_FRAME_INCHES, _WORDS_INCHES, _WIDEST = 1.55, 3.3, 2.4  # the height of a frame; the widest as a multiple of it
_TITLE_INCHES, _LABEL_INCHES, _GAP_INCHES, _EDGE_INCHES = 0.75, 0.24, 0.14, 0.3
_CAPTION_CHARACTERS, _LINE_CHARACTERS, _LINE_POINTS, _CHARACTER_INCHES = 160, 40, 13.5, 0.075


def describe_shards(folder: Place) -> dict[str, Any]:
    """A folder's content in numbers, from its manifest alone; plain values, ready for JSON."""
    manifest = Manifest.load(folder)
    samples = manifest.table.counts()
    counts = Counter[Shape]()
    for (shape, _), count in samples.items():
        counts[manifest.shapes[shape]] += count
    columns = read_columns(folder, manifest)
    known: dict[str, Any] = {"columns": sorted(columns.columns), "captions": sorted(columns.captions)}
    if columns.text_ids is not None:
        known |= {"text_tokenizer": columns.text_tokenizer, "longest_text_ids": int(columns.text_ids.max())}
    return {
        "samples": manifest.n_samples,
        "shards": len(manifest.shards),
        "bytes": int(manifest.table.n_bytes.sum()),
        "codes": sum(t * h * w * count for (t, h, w), count in counts.items()),
        "shapes": {"x".join(map(str, shape)): count for shape, count in counts.most_common()},
        "longest_text": max(length for _, length in samples),
        "tokenizer": manifest.tokenizer,
        "codebook_size": manifest.codebook_size,
        "strides": list(manifest.strides),
        "fingerprint": manifest.fingerprint,
        **{name: value for name, value in known.items() if value},
    }


def sheet_tokenizer(folder: Place, source: str | None = None) -> VisualTokenizer | None:
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
    folder: Place, *, out: Path, named: bool = True, tokenizer: VisualTokenizer | None = None, samples: int = 12
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
    figure = paint_rows(_title(folder, manifest, tokenizer), [_words(sample) for sample in shown], pictures)
    return save_sheet(figure, out=out, named=named)


def save_sheet(figure: Figure, *, out: Path, named: bool = True) -> Path:
    """Write a sheet; arguments, result and errors are those of `shard_sheet`."""
    content = _drawn(figure)
    make_folder(out.parent)
    others = () if named else (out.with_stem(f"{out.stem}-{number}") for number in itertools.count(2))
    for place in itertools.chain([out], others):
        try:
            write_new(place, content)
        except TakenError:
            continue
        return place
    raise ConfigError("this file exists", file=out, where="--out", fix="give another name, or remove it")


def _drawn(figure: Figure) -> bytes:
    """The PNG; letters that its font lacks are told in one line, not in one for each."""
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        figure.savefig(content, dpi=120, format="png", facecolor=PAPER)
    lacking = "some letters are boxes in the picture, whose font lacks them; the captions themselves are as they were"
    texts = (str(one.message) for one in told)
    for text in dict.fromkeys(lacking if text.startswith("Glyph ") else text for text in texts):
        warnings.warn(text, stacklevel=2)
    return content.getvalue()


def paint_rows(
    title: tuple[str, str], words: Sequence[Words], pictures: Sequence[dict[str, NDArray[np.uint8]]]
) -> Figure:
    """A row per sample: its words, then its frames, of one height and at their own width."""
    aspect = max(picture.shape[1] / picture.shape[0] for titled in pictures for picture in titled.values())
    frame_width = _FRAME_INCHES * min(aspect, _WIDEST)
    row_height = _FRAME_INCHES + _LABEL_INCHES + _GAP_INCHES
    columns = max(map(len, pictures))
    width = 2 * _EDGE_INCHES + _WORDS_INCHES + columns * (frame_width + _GAP_INCHES)
    height = _EDGE_INCHES + _TITLE_INCHES + len(words) * row_height
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def write(text: str, left: float, top: float, **looks: Any) -> None:
        figure.text(left / width, 1 - top / height, text, va="top", parse_math=False, linespacing=1.35, **looks)

    write(title[0], _EDGE_INCHES, _EDGE_INCHES, fontsize=13, color=INK, weight="bold")
    about = textwrap.fill(title[1], int((width - 2 * _EDGE_INCHES) / _CHARACTER_INCHES))
    write(about, _EDGE_INCHES, _EDGE_INCHES + 0.3, fontsize=8.5, color=SOFT)
    for number, (said, titled) in enumerate(zip(words, pictures, strict=True)):
        top = _EDGE_INCHES + _TITLE_INCHES + number * row_height
        write(said.key, _EDGE_INCHES, top + 0.07, fontsize=8, color=SOFT)
        write(said.caption, _EDGE_INCHES, top + _LABEL_INCHES, fontsize=9.5, color=INK)
        below = top + _LABEL_INCHES + (said.caption.count("\n") + 1) * _LINE_POINTS / 72 + 0.04
        write(said.details, _EDGE_INCHES, below, fontsize=8, color=SOFT)
        for column, (name, picture) in enumerate(titled.items()):
            left = _EDGE_INCHES + _WORDS_INCHES + column * (frame_width + _GAP_INCHES)
            bottom = height - top - _LABEL_INCHES - _FRAME_INCHES
            axes = figure.add_axes(
                (left / width, bottom / height, frame_width / width, _FRAME_INCHES / height), anchor="NW"
            )
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(name, loc="left", fontsize=8, color=SOFT, pad=4)
    return figure


def _title(folder: Place, manifest: Manifest, tokenizer: VisualTokenizer | None) -> tuple[str, str]:
    """The folder's name, and what is shown of it."""
    samples = counted(manifest.n_samples, "sample")
    if tokenizer is not None:
        return folder.name, f"{samples}, decoded by {manifest.tokenizer}"
    note = f"latent frames in false colour: --tokenizer SOURCE, that of {manifest.tokenizer}, shows the pictures"
    return folder.name, f"{samples}, {note}"


def _pictures(
    sample: ShardSample, manifest: Manifest, tokenizer: VisualTokenizer | None
) -> dict[str, NDArray[np.uint8]]:
    """First, middle and last frame, each once, by title."""
    if tokenizer is None:
        colours = code_colors(sample.codes, manifest.codebook_size)
        return {f"latent frame {index}": colours[index] for index in _ends(len(colours))}
    frames = tokenizer.decode(torch.from_numpy(sample.codes.astype(np.int64))[None])[0].cpu().numpy()
    return {f"frame {index}": frames[index] for index in _ends(sample.frames)}


def _spaced_samples(folder: Place, manifest: Manifest, count: int) -> list[ShardSample]:
    wanted = np.linspace(0, manifest.n_samples - 1, min(count, manifest.n_samples)).round().astype(int)
    ends = np.cumsum(manifest.table.n_samples)
    by_shard: dict[int, list[int]] = {}
    for sample in wanted:
        shard = int(np.searchsorted(ends, sample, side="right"))
        by_shard.setdefault(shard, []).append(int(sample - ends[shard] + manifest.table.n_samples[shard]))
    samples = []
    for shard, indices in by_shard.items():
        content = read_shard(folder, manifest, shard)
        samples += [content[i] for i in indices]
    return samples


def _ends(length: int) -> list[int]:
    """First, middle and last index, each once."""
    return sorted({0, (length - 1) // 2, length - 1})


class Words(NamedTuple):
    key: str
    caption: str
    details: str


def _words(sample: ShardSample) -> Words:
    """What is said of a sample, in lines."""
    if isinstance(sample.text, str):
        caption = textwrap.shorten(sample.text, _CAPTION_CHARACTERS, placeholder=" ...")
    else:
        caption = f"{len(sample.text)} text ids"
    t, h, w = sample.codes.shape
    size = f"{sample.width}x{sample.height} px, {sample.duration:g} s at {sample.fps:g} fps"
    return Words(
        key=textwrap.shorten(sample.key, _LINE_CHARACTERS + 8, placeholder=" ..."),
        caption=textwrap.fill(caption, _LINE_CHARACTERS),
        details=f"codes {t}x{h}x{w}\n{size}",
    )
