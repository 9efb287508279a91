"""report.html, results.csv and the figures of a study, from what its cells have made so far.

The page stands alone: pictures are inside it, nothing is asked of a network, and all words that come from
settings are escaped. It looks as the window of `lumos play` does, from one file.
"""

from __future__ import annotations

import io
import math
import os
import platform
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from callbacks.picture_table import Row, paint_table, show_frame, wrap
from experiments.evaluation.bootstrap import CONFIDENCE
from experiments.study.cells import Cell
from experiments.study.collect import Condition, is_counted, read_conditions, read_runs, results_csv, state
from experiments.study.config import Fit, Study
from experiments.study.contrasts import Line, contrast_values, lines_of
from experiments.study.figures import Picture, paint_all, paint_fits
from experiments.study.statistics import Estimate, estimate, holm, p_value, paired, paired_difference
from experiments.web_page import render_page
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.encoding import encode_png
from lumos_pl.machinery.own_files import remove_own
from lumos_pl.machinery.regular_file import read_regular

TEMPLATE = Path(__file__).with_name("report.html")
FRAME_PX = 64
FIGURES = "figures"
DECIMALS = 3
GAP_PX = 4  # between the frames of a strip

COMPARED_TO = {"grid": "the first training", "sampling": "the first row of the same training"}

CONTRASTS = ""  # in place of a measure

Comparisons = dict[tuple[str, tuple[str, ...]], float]  # corrected p-values, by measure and the row's labels


@dataclass(frozen=True)
class Strip:
    """The frames of one clip side by side, and whose it is."""

    words: str
    png: bytes


@dataclass(frozen=True)
class Sheet:
    """What all conditions made of one caption: as one picture, and for the page, which has words of its own."""

    about: str
    png: bytes
    strips: Sequence[Strip]


def write_report(
    study: Study,
    cells: Sequence[Cell],
    folder: Path,
    command: str,
    conditions: Sequence[Condition] | None = None,
    *,
    kept: Path | None = None,
    measured_otherwise: Sequence[str] = (),
) -> Path:
    """Write everything anew; returns the page.

    Args:
        conditions: the rows; None: those that the cells measured.
        kept: the file that has those of them that come from elsewhere.
        measured_otherwise: cells, in words, some of whose figures are of other settings than the study's.
        folder: of the study's results.
        command: that makes them again.
    """
    conditions = read_conditions(study, cells) if conditions is None else conditions
    comparisons = corrected(study, conditions)
    lines = {name: lines_of(study, fit, conditions) for name, fit in study.fits.items()}
    pictures = [*paint_all(study, read_runs(cells), conditions), *paint_fits(study, lines)]
    seed, sheets = paint_sheets(cells)
    make_folder(folder)
    make_folder(folder / FIGURES, within=folder)
    files = _figures(pictures, sheets)
    if kept is None or any(cell.is_done() for cell in cells):
        files["results.csv"] = results_csv(study, cells).encode()
    measures = [f"measure_{i:02d}" for i in range(len(study.measures))]
    of_measure = {picture.name: picture for picture in pictures if picture.name in measures}
    tables = [
        _table(study, name, key, conditions, comparisons) | {"picture": of_measure.get(file)}
        for file, (name, key) in zip(measures, study.measures.items(), strict=True)
    ]
    fits = [_fit(study.fits[name], name, found) for name, found in lines.items() if found]
    files["report.html"] = render_page(
        TEMPLATE,
        study=study,
        cells=cells,
        counts=Counter(map(state, cells)),
        failures=[cell for cell in cells if state(cell) == "failed"],
        axes=", ".join(study.axes),
        kept=kept and kept.name,
        measured_otherwise=", ".join(measured_otherwise),
        compared_to=COMPARED_TO[study.compares] + (" at the same step" if study.at else ""),
        n_compared=len(comparisons),
        n_open=sum(math.isnan(p) for p in comparisons.values()),
        shown=next((table for table in tables if table["name"] == study.shown_by), None),
        tables=tables,
        contrasts=_contrasts(study, conditions, comparisons),
        fits=fits,
        pictures=[picture for picture in pictures if picture.name not in of_measure],
        sheets=sheets,
        sheet_seed=seed,
        date=time.strftime("%Y-%m-%d"),
        machine=_machine(),
        command=command,
    )
    _replace_all(folder, files)
    return folder / "report.html"


def _figures(pictures: Sequence[Picture], sheets: Sequence[Sheet]) -> dict[str, bytes]:
    """The files of what was painted, by their names in the study's folder."""
    files = {f"{FIGURES}/{picture.name}.png": picture.png for picture in pictures}
    files |= {f"{FIGURES}/{picture.name}.svg": picture.svg for picture in pictures}
    return files | {f"{FIGURES}/clips_{i:02d}.png": sheet.png for i, sheet in enumerate(sheets)}


def _replace_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, and remove pictures of an earlier report that are none of them."""
    painted = {*(folder / FIGURES).glob("*.png"), *(folder / FIGURES).glob("*.svg")}
    for stale in painted - {folder / name for name in files}:
        remove_own(stale)
    for name, content in files.items():
        write_atomically(folder / name, content)


def _machine() -> str:
    devices = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return f"{platform.system()} {platform.machine()}, {devices}, torch {torch.__version__}"


def _table(study: Study, name: str, key: str, conditions: Sequence[Condition], p: Comparisons) -> dict[str, Any]:
    """The rows of one measure; a line is drawn above those of another training, where each has several."""
    means = [values.mean() for condition in conditions for values in condition.values[name].values()]
    decimals = _decimals(means)
    rows = [_row(study, name, condition, first, p, decimals) for condition, first in compared(study, conditions)]
    n_trained = len(study.grid)
    trained = [condition.labels[:n_trained] for condition in conditions]
    for place, row in enumerate(rows):
        row["is_first"] = len(study.sampled) > 1 and (not place or trained[place] != trained[place - 1])
    return {"name": name, "key": key, "rows": rows, "decides": name in study.decides, "is_counted": is_counted(key)}


def compared(study: Study, conditions: Sequence[Condition]) -> list[tuple[Condition, Condition | None]]:
    """Each row with the one that it is compared to; None for that one itself, and where that was not measured."""
    by_labels = {condition.labels: condition for condition in conditions}
    others = [by_labels.get(study.compared_to(condition.labels)) for condition in conditions]
    return [(one, None if other is one else other) for one, other in zip(conditions, others, strict=True)]


def corrected(study: Study, conditions: Sequence[Condition]) -> Comparisons:
    """p-values of all differences and contrasts by which the study decides, corrected together by Holm's method."""
    asked = [
        (name, one.labels, p_value(paired(one.values[name], other.values[name])))
        for name in study.decides
        for one, other in compared(study, conditions)
        if other is not None
    ]
    asked += [(CONTRASTS, (words,), p_value(contrast_values(c, conditions))) for words, c in study.contrasts.items()]
    together = holm([p for _, _, p in asked])
    return {(name, labels): p for (name, labels, _), p in zip(asked, together, strict=True)}


def _row(
    study: Study, name: str, condition: Condition, first: Condition | None, p: Comparisons, decimals: int
) -> dict[str, Any]:
    own = condition.values[name]
    found = condition.estimate(study, name)
    difference = paired_difference(own, {} if first is None else first.values[name])
    by_holm = p.get((name, condition.labels), math.nan)
    is_apart = difference.low > 0 or difference.high < 0
    return {
        "words": condition.words,
        "n": found.n,
        "mean": _figure(found.mean, decimals),
        "interval": _interval(found, decimals),
        "difference": _figure(difference.mean, decimals, signed=True),
        "n_difference": difference.n,
        "difference_interval": _interval(difference, decimals, signed=True),
        "p": _p(by_holm),
        "is_clear": is_apart if math.isnan(by_holm) else by_holm < 1 - CONFIDENCE,
    }


def _contrasts(study: Study, conditions: Sequence[Condition], p: Comparisons) -> list[dict[str, Any]]:
    """A row of each contrast: it is a difference by itself."""
    rows = []
    for words, contrast in study.contrasts.items():
        found = estimate(contrast_values(contrast, conditions))
        decimals = _decimals([found.mean, found.low, found.high])
        by_holm = p.get((CONTRASTS, (words,)), math.nan)
        rows.append({"words": words, "n": found.n, "difference": _figure(found.mean, decimals, signed=True)})
        rows[-1] |= {"difference_interval": _interval(found, decimals, signed=True), "p": _p(by_holm)}
        rows[-1] |= {"is_clear": by_holm < 1 - CONFIDENCE}
    return rows


def _fit(fit: Fit, name: str, lines: Sequence[Line]) -> dict[str, Any]:
    """A row of each line."""
    exponents = [one for line in lines for one in (line.exponent, line.difference)]
    decimals = _decimals([end for one in exponents for end in (one.mean, one.low, one.high)])
    digits = _decimals([line.at_reach.mean for line in lines])
    rows = [
        {
            "words": line.words or "all",
            "exponent": _told(line.exponent, decimals, signed=True),
            "difference": _told(line.difference, decimals, signed=True),
            "at_reach": _told(line.at_reach, digits),
        }
        for line in lines
    ]
    rows[0]["difference"] = "–"
    return {"name": name, "fit": fit, "rows": rows}


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _decimals(values: Sequence[float]) -> int:
    """Three, or as many as give the largest of small numbers three digits."""
    largest = max((abs(value) for value in values if value and math.isfinite(value)), default=1.0)
    return max(DECIMALS, 2 - math.floor(math.log10(largest)))


def _figure(value: float, decimals: int = DECIMALS, *, signed: bool = False) -> str:
    """So many decimals, or a few digits of a number that is large."""
    if math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    return format(value, f"{sign}.{decimals}f" if abs(value) < 100 else f"{sign},.0f")


def _interval(found: Estimate, decimals: int = DECIMALS, *, signed: bool = False) -> str:
    if math.isnan(found.low):
        return "–"
    return f"{_figure(found.low, decimals, signed=signed)} to {_figure(found.high, decimals, signed=signed)}"


def _told(found: Estimate, decimals: int, *, signed: bool = False) -> str:
    return f"{_figure(found.mean, decimals, signed=signed)} ({_interval(found, decimals, signed=signed)})"


def paint_sheets(cells: Sequence[Cell]) -> tuple[int | None, list[Sheet]]:
    """For each caption and evaluation a table of the frames that every condition drew, from models of one seed.

    Returns:
        that seed, the first for which there are clips, and the sheets; None and none where there are no clips.
    """
    clips: dict[tuple[str, str], list[tuple[str, list[Image.Image]]]] = {}  # by caption and evaluation
    seed = next((cell.seed for cell in cells if any(e.clips_file.is_file() for e in cell.evaluations)), None)
    for cell in cells:
        for evaluation in cell.evaluations if cell.seed == seed else ():
            if evaluation.is_done() and evaluation.clips_file.is_file():
                words = ", ".join(cell.variant.labels + evaluation.variant.labels) or "all"
                for prompt, frames in _shown_clips(evaluation.clips_file):
                    shown = [show_frame(frame, FRAME_PX) for frame in frames]
                    clips.setdefault((prompt, evaluation.name), []).append((words, shown))
    several = len({name for _, name in clips}) > 1
    sheets = []
    for (prompt, name), of_prompt in clips.items():
        about = f"{prompt} ({name})" if several else prompt
        rows = [Row(wrap(words), frames) for words, frames in of_prompt]
        columns = [""] * max(len(frames) for _, frames in of_prompt)
        strips = [Strip(words, encode_png(_strip(frames))) for words, frames in of_prompt]
        sheets.append(Sheet(about, encode_png(paint_table(about, columns, rows)), strips))
    return seed, sheets


def _shown_clips(file: Path) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captions and frames, [T, H, W, 3], of `write_shown_clips`.

    Raises:
        DataError: the file is damaged.
    """
    fix = "move it away: the report is made without these clips"
    try:
        with np.load(io.BytesIO(read_regular(file)), allow_pickle=False) as saved:
            prompts, frames = saved["prompts"].tolist(), saved["frames"]
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError) as error:
        raise DataError("damaged clips", file=file, got=str(error), fix=fix) from None
    if frames.dtype != np.uint8 or frames.ndim != 5 or len(prompts) != len(frames):
        raise DataError("damaged clips", file=file, got=f"{frames.dtype} {frames.shape}", fix=fix)
    return list(zip(map(str, prompts), frames, strict=True))


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames of one size side by side; what is between them is the page's."""
    width, height = frames[0].size
    strip = Image.new("RGBA", (len(frames) * (width + GAP_PX) - GAP_PX, height))
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * (width + GAP_PX), 0))
    return strip
