"""What an experiment makes for itself before it trains: clips, and their shards."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from data_modules.shape_world.clips import write_clips
from data_modules.tokenize import TokenizeSettings, tokenize_media
from experiments.config import Config, ExperimentConfig
from lumos_pl.file_lock import file_lock

SHARDS = "shards"  # beside a split's clips


def prepare_clips(config: Config) -> None:
    """Make what `config.clips` asks for where it is not there yet; nothing is made twice.

    The clips are mp4 files with a list of captions; for a Lumos-1 model they are tokenized, by the
    same command that a user's own videos go through. Runs that share a folder of clips take turns here.
    """
    clips = config.clips
    if not clips.train:
        return
    Path(clips.folder).mkdir(parents=True, exist_ok=True)
    with file_lock(Path(clips.folder) / "clips.lock", wait=True), Progress(transient=True) as progress:
        for split, count in ("train", clips.train), ("val", clips.val):
            folder = Path(clips.folder) / split
            task = progress.add_task(f"drawing {split} clips", total=count)
            listed = write_clips(
                folder,
                clips.world,
                split=split,  # type: ignore[arg-type]
                count=count,
                on_progress=lambda done, _, task=task: progress.update(task, completed=done),  # type: ignore[misc]
            )
            if isinstance(config, ExperimentConfig) and config.visual_tokenizer is not None:
                _tokenize(listed, folder / SHARDS, config, progress)


def _tokenize(listed: Path, out: Path, config: ExperimentConfig, progress: Progress) -> None:
    world = config.clips.world
    settings = TokenizeSettings(
        fps=world.fps, frames=world.frames, min_frames=world.frames, size=f"{world.side}x{world.side}"
    )
    task = progress.add_task(f"tokenizing {listed.parent.name} clips", total=None)
    assert config.visual_tokenizer is not None
    tokenize_media(
        listed,
        out,
        config.visual_tokenizer,
        settings,
        on_progress=lambda state: progress.update(task, completed=state.done, total=state.total),
    )
