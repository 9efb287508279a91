"""Writes scenes as H.264 files with a list of their captions, as a user's own folder would be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from data_modules.manifest import parse_json
from data_modules.shape_world.render import render
from data_modules.shape_world.scene import Split, WorldConfig, draw_scene
from lumos_pl.atomic_file import naming, write_atomically
from lumos_pl.encoding import encode_mp4
from lumos_pl.errors import ConfigError, DataError

CAPTIONS_FILE, WORLD_FILE = "captions.csv", "world.json"


@dataclass(frozen=True, kw_only=True)
class WorldClipsConfig(WorldConfig):
    """A world, and the captioned clips of it that the project makes for itself.

    Args:
        folder: where they lie, in `folder/train` and `folder/val`.
        train, val: clips of each split; with 0 for training none are made at all.
    """

    folder: str = "data/clips"
    train: int = 0
    val: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in ("train", self.train, 0), ("val", self.val, 1):
            if not least <= value <= 10**6:
                raise ConfigError("out of range", where=f"world.{name}", got=value, expected=f"{least} to 1000000")


def write_clips(
    folder: Path,
    world: WorldConfig,
    *,
    split: Split,
    count: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` clips, `folder/SPLIT-NUMBER.mp4`, and their captions; the same bytes every time.

    What is there already from an earlier call is kept.

    Returns:
        the list of captions, a CSV with the columns `path` and `caption`, as `lumos tokenize` reads it.
    Raises:
        DataError: the folder holds clips of another world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {item.name: getattr(world, item.name) for item in fields(WorldConfig)}  # of a subclass no more than that
    _claim(folder / WORLD_FILE, json.dumps({"split": split, "count": count, **drawn}, indent=1).encode())
    path = folder / CAPTIONS_FILE
    if path.exists():
        return path
    rows = []
    for number in range(count):
        scene = draw_scene(world, seed=0, split=split, number=number)
        name = f"{split}-{number:06d}.mp4"
        with naming(folder / name):
            (folder / name).write_bytes(encode_mp4(render(scene, world), world.fps))
        rows.append((name, scene.caption))
        if on_progress is not None:
            on_progress(number + 1, count)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "caption"), *rows])
    write_atomically(path, text.getvalue().encode())  # last: without it the clips are not complete
    return path


def _claim(path: Path, description: bytes) -> None:
    """Say what the folder is for, unless it is for something else."""
    there = path.read_bytes() if path.exists() else description
    if there != description:
        got, expected = parse_json(there), json.loads(description)
        if isinstance(got, dict) and got | {"count": expected["count"]} == expected:
            what, counts = "another number of clips is here", {"got": got["count"], "expected": expected["count"]}
        else:
            what, counts = "clips of another world are here", {}
        raise DataError(what, file=path.parent, **counts, fix="remove the folder, or set world.folder to another")
    write_atomically(path, description)
