"""Pictures in rows and columns, with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TEXT_PX = 13
GAP_PX = 6
SHOWN_PX = 128  # long side of a frame in a row of several
PAPER, INK = (255, 255, 255), (40, 40, 40)

Frames = NDArray[np.uint8]
"""RGB, [H, W, 3] or [N, H, W, 3]."""


@dataclass(frozen=True)
class Row:
    """Pictures of one size, with a caption of one or more lines on their left."""

    caption: str
    pictures: Sequence[Image.Image]


def paint_table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Lay the rows out under a title and the columns' captions; a column is as wide as its widest picture."""
    font = ImageFont.load_default(TEXT_PX)
    line = TEXT_PX + GAP_PX
    widths = [
        max([row.pictures[i].width for row in rows if i < len(row.pictures)], default=0) for i in range(len(columns))
    ]
    gutter = 2 * GAP_PX + max(round(font.getlength(text)) for row in rows for text in row.caption.split("\n"))
    lefts = [gutter + sum(widths[:i]) + i * GAP_PX for i in range(len(columns) + 1)]
    heights = [max(row.pictures[0].height, line * (row.caption.count("\n") + 1)) for row in rows]
    width = max(lefts[-1], GAP_PX * 2 + round(font.getlength(title)))
    table = Image.new("RGB", (width, 2 * line + GAP_PX + sum(heights) + GAP_PX * len(rows)), PAPER)
    draw = ImageDraw.Draw(table)
    draw.text((GAP_PX, GAP_PX), title, INK, font)
    for left, caption in zip(lefts, columns, strict=False):
        draw.text((left, GAP_PX + line), caption, INK, font)
    top = 2 * line + GAP_PX
    for row, height in zip(rows, heights, strict=True):
        draw.multiline_text((GAP_PX, top), row.caption, INK, font, spacing=GAP_PX)
        for left, picture in zip(lefts, row.pictures, strict=False):
            table.paste(picture, (left, top))
        top += height + GAP_PX
    return table


def paint_stills(title: str, captions: Sequence[str], clips: Sequence[Frames], stride: int) -> Image.Image:
    """A row per clip with every `stride`-th of its frames."""
    rows = [
        Row(wrap(caption), [show_frame(frame, SHOWN_PX) for frame in clip[::stride]])
        for caption, clip in zip(captions, clips, strict=True)
    ]
    return paint_table(title, [f"frame {i * stride}" for i in range(max(len(row.pictures) for row in rows))], rows)


def wrap(caption: str, width: int = 24) -> str:
    """Break a caption into lines."""
    return "\n".join(textwrap.wrap(caption, width))


def show_frame(frame: Frames, long_side: int) -> Image.Image:
    """A frame [H, W, 3] at about `long_side` px; enlarged pixels stay square and sharp."""
    height, width, _ = frame.shape
    scale: float = long_side / max(height, width)
    if scale > 1:
        scale = int(scale)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(frame).resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
