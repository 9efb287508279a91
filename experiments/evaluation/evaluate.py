"""Measures a model and writes down what it found: eval.json, times.json, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from experiments.evaluation.beforehand import obstacle
from experiments.evaluation.bootstrap import CONFIDENCE, Measured
from experiments.evaluation.context import measure_context
from experiments.evaluation.fidelity import measure_fidelity
from experiments.evaluation.frechet import measure_frechet, open_extractors
from experiments.evaluation.horizon import measure_horizon
from experiments.evaluation.loss import measure_loss
from experiments.evaluation.pictures import (
    continued_samples,
    drift_length,
    measure_continued,
    measure_drift,
    run_length,
)
from experiments.evaluation.report import Result, Times, write_tensorboard
from experiments.evaluation.settings import EvalSettings, OnProgress, OnStep, Part
from experiments.evaluation.subject import Subject
from experiments.run_folder import RunFolder
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.errors import ConfigError, NumericError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.json_file import as_json, read_json

FILE = "eval.json"
TIMES_FILE = "times.json"  # apart: eval.json is the same at every evaluation
MEASURED_BY: dict[Part, Callable[[Subject, OnStep], Measured]] = {
    "loss": measure_loss,
    "context": measure_context,
    "fidelity": measure_fidelity,
    "horizon": measure_horizon,
    "i2v": partial(measure_continued, "i2v"),
    "continuation": partial(measure_continued, "continuation"),
    "drift": measure_drift,
    "frechet": measure_frechet,
}


def evaluate(
    source: Path,
    settings: EvalSettings,
    *,
    visual_tokenizer: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure a run (its newest complete checkpoint), a .ckpt or a released folder.

    The result depends on the checkpoint, the data and the settings alone: a second evaluation writes the same bytes.
    Wall times, by name like measures, stand in `times.json` beside it; `eval.json` is the last file that is written.

    Args:
        visual_tokenizer: see `Subject.open`.
    Returns:
        what `eval.json` in the run's folder (or `settings.out`) then holds, as plain values: what was measured, and
        `measures`: by name (PART/ROW/COLUMN) mean, low, high, n and the values of the samples, which
        `samples` lists by the beginning of the name; `skipped`: why parts were left out.
    Raises:
        ConfigError: a part that was asked for cannot be measured, or nothing can.
        NumericError: a measure is not finite.
        CheckpointError, DataError: of the checkpoint and the data.
    """
    source = resolve_named(source)
    subject = Subject.open(source, settings, visual_tokenizer=visual_tokenizer)
    folder = _ready(results_folder(source, settings))
    result, times = measure(subject, source, on_progress)
    write_atomically(folder / TIMES_FILE, json.dumps(times) + "\n")
    make_folder(folder / "eval", within=folder)
    write_tensorboard(folder / "eval", result)
    write_atomically(folder / FILE, json.dumps(result) + "\n")
    return result


def measure(
    subject: Subject, source: Path, on_progress: OnProgress | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """What `evaluate` writes down of a model, and the wall times.

    Args:
        source: what it was opened from, as the result calls it.
    """
    settings = subject.settings
    wanted = settings.parts
    skipped = {part: why for part in wanted if (why := _obstacle(part, subject)) is not None}
    if skipped and (settings.only or len(skipped) == len(wanted)):
        part, why = next(iter(skipped.items()))
        raise ConfigError(f"cannot measure {part}", file=source, where=why)

    extractors = {}
    if "frechet" in wanted and "frechet" not in skipped:
        opened = open_extractors(subject)  # a file of the user's that does not fit is told before what takes long
        extractors = {"extractors": {name: extractor.digest for name, extractor in opened.items()}}
    measured, times = Measured({}, {}), dict[str, float]()
    for part in wanted:
        if part in skipped:
            continue
        of_part = MEASURED_BY[part](subject, partial(on_progress, part) if on_progress else lambda done, in_all: None)
        measured.measures.update(of_part.measures)
        measured.samples.update(of_part.samples)
        times.update(of_part.times)
    for name, found in measured.measures.items():
        if not all(map(math.isfinite, found.numbers)):
            raise NumericError("a measure is not finite", file=source, where=name)

    result: dict[str, Any] = as_json(
        _describe(source, subject)
        | extractors
        | {
            "skipped": skipped,
            "samples": measured.samples,
            "measures": {name: asdict(found) for name, found in measured.measures.items()},
        }
    )
    return result, times


def results_folder(source: Path, settings: EvalSettings) -> Path:
    """Where the results go: by default to the run which `source`, as `resolve_named` gives it, is or belongs to."""
    runs = [folder for folder in (source, source.parent.parent) if RunFolder(folder).config.is_file()]
    if settings.out is None and not runs:
        raise ConfigError("not a run: where should the results go?", file=source, fix="give a folder with --out")
    return settings.out or runs[0]


def _ready(folder: Path) -> Path:
    """The folder, which is there now and holds no other's file in the place of a result."""
    make_folder(folder, error=ConfigError, where="--out")
    for name, kind in (FILE, Result), (TIMES_FILE, Times):  # what is none of ours is not written over
        if os.path.lexists(folder / name):
            read_json(folder / name, kind, fix="move it away, or write elsewhere with --out")
    return folder


def _obstacle(part: Part, subject: Subject) -> str | None:
    """Why a part cannot be measured: for what its run is, or its validation clips are."""
    reads_text = subject.lumos.text_tokenizer is not None
    if (why := obstacle(part, subject.settings, subject.config, reads_text=reads_text)) is not None:
        return why
    if part in ("context", "i2v", "continuation", "drift") and not continued_samples(part, subject):
        return "validation clips of too few latent frames: data.video.frames"
    if part == "drift" and drift_length(subject) <= run_length(subject):
        return "the model's context holds no longer clips: model.max_length"
    return None


def _describe(source: Path, subject: Subject) -> dict[str, Any]:
    """What the numbers depend on."""
    settings, lumos, clips = subject.settings, subject.lumos, subject.data.val_source()
    assert lumos.saved is not None
    return {
        "source": str(source),
        "checkpoint": lumos.saved.digest,
        "step": lumos.saved.step,
        "settings": settings.recorded() | {"device": lumos.device.type},
        "data": None if clips is None else clips.shards.manifest.fingerprint,
        "visual_tokenizer": None if lumos.visual_tokenizer is None else lumos.visual_tokenizer.fingerprint,
        "precision": lumos.precision,
        "sampling": asdict(lumos.sampling),
        "truth": "validation clips decoded from their codes",
        "confidence": CONFIDENCE,
    }
