"""Validation clips of another world than the run's: longer clips, larger pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from data_modules.shape_world.clips import write_clips
from experiments.config import ExperimentConfig, with_overrides
from experiments.prepare import SHARDS, _tokenize
from lumos_pl.errors import ConfigError
from lumos_pl.file_lock import file_lock

FOLDER_KEY = "clips.folder="


def with_own_clips(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """The settings with the clips that an override of `clips.folder` asks for as validation data.

    They are made where they are not there yet, as a run makes its own. Without that override, `clips.world`
    changes the captions and clips of fidelity and nothing else.

    Args:
        config: with the overrides.
        overrides: those of `data.` win over what follows from the clips: `data.val_root`, and as many frames.
    Raises:
        ConfigError: nothing to tokenize them with.
        DataError: clips of yet another world are in the folder.
    """
    if not any(override.startswith(FOLDER_KEY) for override in overrides):
        return config
    shards = _make(config)
    video = replace(config.data.video, frames=config.clips.world.frames)
    data = replace(config.data, kind="video", val_root=str(shards), video=video)
    return with_overrides(replace(config, data=data), overrides)


def _make(config: ExperimentConfig) -> Path:
    """Validation clips and their shards, in the folder that is returned; nothing is made twice."""
    if config.visual_tokenizer is None:
        raise ConfigError("clips cannot be tokenized", where="visual_tokenizer", got="none")
    clips = config.clips
    folder = Path(clips.folder) / "val"
    folder.mkdir(parents=True, exist_ok=True)
    # The lock of training runs. No bar: the evaluation's own is on the terminal already.
    with file_lock(Path(clips.folder) / "clips.lock", wait=True), Progress(disable=True) as progress:
        listed = write_clips(folder, clips.world, split="val", count=clips.val)
        _tokenize(listed, folder / SHARDS, config, progress)
    return folder / SHARDS
