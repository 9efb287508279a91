"""What an experiment makes for itself before it trains: clips, and their shards."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from data_modules.shape_world.clips import write_clips
from data_modules.shape_world.scene import Split
from data_modules.tokenize import TokenizeSettings, tokenize_media
from experiments.config import Config, ExperimentConfig
from lumos_pl.file_lock import file_lock


def prepare_clips(config: Config) -> None:
    """Make the clips that `config.world` asks for where they are not there yet; nothing is made twice."""
    if not config.world.train:
        return
    with Progress(transient=True) as progress:
        prepare_split(config, "train", config.world.train, progress)
        prepare_split(config, "val", config.world.val, progress)


def prepare_split(config: Config, split: Split, count: int, progress: Progress) -> Path:
    """Make the clips of one split; who else wants clips of that folder waits.

    The clips are mp4 files with a list of captions; for a Lumos-1 model they are tokenized, by the
    same command that a user's own videos go through.

    Returns:
        the folder of their shards.
    """
    folder = Path(config.world.folder) / split
    shards = folder / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.parent / "clips.lock", wait=True):
        task = progress.add_task(f"drawing {split} clips", total=count)
        listed = write_clips(
            folder,
            config.world,
            split=split,
            count=count,
            on_progress=lambda done, _: progress.update(task, completed=done),
        )
        if isinstance(config, ExperimentConfig) and config.visual_tokenizer is not None:
            _tokenize(listed, shards, config, config.visual_tokenizer, progress)
    return shards


def _tokenize(listed: Path, out: Path, config: ExperimentConfig, visual_tokenizer: str, progress: Progress) -> None:
    world = config.world
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
