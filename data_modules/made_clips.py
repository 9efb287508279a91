"""Clips that a data module makes for itself before it reads them: drawn, and tokenized where codes are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import tokenize_media
from lumos_pl.machinery.atomic_file import make_folder
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.progress_bar import ProgressBar
from lumos_pl.shape_world.clips import WorldClipsConfig, write_clips
from lumos_pl.world import Split

Part = Split | Literal["remembered"]


def shards_of(world: WorldClipsConfig, part: Part) -> Path:
    """Where the tokenized clips of a split lie, or those without what is new."""
    return Path(world.folder) / part / "shards"


def make_clips(world: WorldClipsConfig, visual_tokenizer: str | None) -> None:
    """Make the clips that `world` asks for where they are not there yet; nothing is made twice.

    Args:
        visual_tokenizer: see `load_visual_tokenizer`; None: the clips stay videos.
    """
    if not world.train:
        return
    with ProgressBar() as progress:
        make_part(world, "train", world.train, visual_tokenizer, progress)
        make_part(world, "val", world.val, visual_tokenizer, progress)
        if world.remembered:
            make_part(world, "remembered", world.remembered, visual_tokenizer, progress)


def make_part(
    world: WorldClipsConfig, part: Part, count: int, visual_tokenizer: str | None, progress: ProgressBar
) -> Path:
    """Make the clips of one split, or of training those without what is new; who else wants clips of that folder waits.

    The clips are mp4 files with a list of captions, tokenized by the same command that a user's own videos go through.

    Returns:
        the folder of their shards.
    """
    split: Split = "train" if part == "remembered" else part
    drawn = world.old if part == "remembered" else world
    shards = shards_of(world, part)
    make_folder(shards.parent)
    with file_lock(shards.parents[1] / "clips.lock", wait=True):
        task = progress.add_task(f"drawing {part} clips", total=count)
        listed = write_clips(
            shards.parent,
            drawn,
            split=split,
            count=count,
            on_progress=lambda done, _: progress.update(task, completed=done),
        )
        if visual_tokenizer is not None:
            _tokenize(listed, shards, world, visual_tokenizer, progress)
    return shards


def _tokenize(listed: Path, out: Path, world: WorldClipsConfig, visual_tokenizer: str, progress: ProgressBar) -> None:
    settings = TokenizeSettings(
        fps=world.fps, frames=world.frames, min_frames=world.frames, size=f"{world.side}x{world.side}"
    )
    task = progress.add_task(f"tokenizing {listed.parent.name} clips", total=None)
    tokenize_media(
        listed,
        out,
        visual_tokenizer,
        settings,
        on_progress=lambda state: progress.update(task, completed=state.done, total=state.total),
    )
