"""What is painted of the clips that are there: the contact sheet, and GenEval's files of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice

import numpy as np
from PIL import Image

from callbacks.picture_table import Frames, paint_stills
from data_modules.media.decode import ClipRequest
from data_modules.media.reader import MediaReader
from experiments.sample.arrangement import Job
from experiments.sample.folder import SampleFolder
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.encoding import encode_png
from lumos_pl.sampling.config import ClipFormat

SHEET = "sheet.png"
SHEET_CLIPS, SHEET_COLUMNS, CAPTION_CHARS = 24, 8, 160
GRID_COLUMNS = 2


def paint_sheet(folder: SampleFolder, jobs: Sequence[Job], clip: ClipFormat, *, stride: int) -> None:
    """sheet.png: the first clips that are there, if any, a row each, with frames `stride` (or more) apart."""
    shown = list(islice((job for job in jobs if folder.is_done(job)), SHEET_CLIPS))
    if not shown:
        return
    clips = _read(folder, shown, clip)
    stride = max(stride, -(-clip.frames // SHEET_COLUMNS))
    captions = [_printable(job.prompt.text) for job in shown]
    title = (
        f"{len(shown)} of {len(jobs)}: {clip.width}x{clip.height}, {counted(clip.frames, 'frame')} at {clip.fps} fps"
    )
    folder.write(SHEET, encode_png(paint_stills(title, captions, clips, stride)))


def write_geneval(folder: SampleFolder, jobs: Iterable[Job], clip: ClipFormat) -> None:
    """grid.png and metadata.jsonl of every prompt whose images are all there."""
    for index, of_prompt in groupby(jobs, key=lambda job: job.index):
        samples = list(of_prompt)
        grid, metadata = f"{index:05d}/grid.png", f"{index:05d}/metadata.jsonl"
        if all(folder.is_done(job) for job in samples) and not folder.wrote(grid, metadata):
            folder.write(grid, encode_png(_tile([frames[0] for frames in _read(folder, samples, clip)])))
            assert samples[0].prompt.metadata is not None
            folder.write(metadata, samples[0].prompt.metadata.encode() + b"\n")


def _read(folder: SampleFolder, jobs: Iterable[Job], clip: ClipFormat) -> list[Frames]:
    """Clips as they were written."""
    request = ClipRequest(sizes=((clip.width, clip.height),), fps=clip.fps, max_frames=clip.frames, start=0.0)
    with MediaReader() as reader:
        return [reader.read(folder.path / job.file, request).frames for job in jobs]


def _tile(pictures: Sequence[Frames]) -> Image.Image:
    """Pictures of one size, [H, W, 3], beside and under each other."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // GRID_COLUMNS)
    tiled = np.zeros((rows * height, min(len(pictures), GRID_COLUMNS) * width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, GRID_COLUMNS)
        tiled[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return Image.fromarray(tiled)


def _printable(text: str) -> str:
    kept = "".join(c if c.isprintable() else " " for c in text)
    return kept if len(kept) <= CAPTION_CHARS else kept[: CAPTION_CHARS - 3] + "..."
