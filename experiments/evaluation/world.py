"""Validation clips of another world than the run's: longer clips, larger pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_modules.made_clips import make_part
from experiments.config import ExperimentConfig
from experiments.read_config import with_overrides
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.progress_bar import ProgressBar

FOLDER_KEY = "world.folder="


def with_own_clips(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """The settings with the clips that an override of `world.folder` asks for as validation data.

    They are made where they are not there yet, as a run makes its own. Without that override, `world`
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
    if config.visual_tokenizer is None:
        raise ConfigError("clips cannot be tokenized", where="visual_tokenizer", got="none")
    with ProgressBar(disable=True) as progress:  # no bar: the evaluation's own is on the terminal already
        shards = make_part(config.world, "val", config.world.val, config.visual_tokenizer, progress)
    video = replace(config.data.video, frames=config.world.frames)
    data = replace(config.data, kind="video", sources={}, val_root=str(shards), video=video)
    return with_overrides(replace(config, data=data), overrides)
