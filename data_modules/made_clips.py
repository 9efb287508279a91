"""Clips that a data module makes for itself before it reads them: drawn, and tokenized where codes are wanted."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from data_modules.tokenizing.tokenize import TokenizeSettings, tokenize_media
from lumos_pl.machinery.atomic_file import make_folder
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.shape_world.clips import WorldClipsConfig, write_clips
from lumos_pl.world import Split


def shards_of(world: WorldClipsConfig, split: Split) -> Path:
    """Where the tokenized clips of a split lie."""
    return Path(world.folder) / split / "shards"


def make_clips(world: WorldClipsConfig, visual_tokenizer: str | None) -> None:
    """Make the clips that `world` asks for where they are not there yet; nothing is made twice.

    Args:
        visual_tokenizer: see `load_visual_tokenizer`; None: the clips stay videos.
    """
    if not world.train:
        return
    with Progress(transient=True) as progress:
        make_split(world, "train", world.train, visual_tokenizer, progress)
        make_split(world, "val", world.val, visual_tokenizer, progress)


def make_split(
    world: WorldClipsConfig, split: Split, count: int, visual_tokenizer: str | None, progress: Progress
) -> Path:
    """Make the clips of one split; who else wants clips of that folder waits.

    The clips are mp4 files with a list of captions, tokenized by the same command that a user's own videos go through.

    Returns:
        the folder of their shards.
    """
    shards = shards_of(world, split)
    make_folder(shards.parent)
    with file_lock(shards.parents[1] / "clips.lock", wait=True):
        task = progress.add_task(f"drawing {split} clips", total=count)
        listed = write_clips(
            shards.parent,
            world,
            split=split,
            count=count,
            on_progress=lambda done, _: progress.update(task, completed=done),
        )
        if visual_tokenizer is not None:
            _tokenize(listed, shards, world, visual_tokenizer, progress)
    return shards


def _tokenize(listed: Path, out: Path, world: WorldClipsConfig, visual_tokenizer: str, progress: Progress) -> None:
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
