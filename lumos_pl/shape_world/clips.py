"""Writes the scenes of a world as H.264 files with a list of their captions, as a user's own folder would be."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.machinery.json_file import as_json, read_json
from lumos_pl.machinery.own_files import digest_of, is_own, remove_partials
from lumos_pl.settings.differences import differences
from lumos_pl.settings.ranges import between, check_ranges
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import Split, World, build_world

CAPTIONS_FILE, WORLD_FILE = "captions.csv", "world.json"


@dataclass(frozen=True, kw_only=True)
class WorldClipsConfig(WorldConfig):
    """A world, and the captioned clips of it that the project makes for itself.

    Args:
        folder: where they lie, in `folder/train`, `folder/val` and `folder/remembered`.
        train, val: clips of each split; with 0 for training none are made at all.
        remembered: clips for training without the `new` words, so that a model does not forget the others.
    """

    folder: str = "data/clips"
    train: int = 0
    val: int = 64
    remembered: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("world", self, train=between(0, 10**6), val=between(1, 10**6), remembered=between(0, 10**6))


def write_clips(
    folder: Path,
    world: WorldConfig,
    *,
    split: Split,
    count: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """`record_clips` of the world of these settings."""
    return record_clips(folder, build_world(world), split=split, count=count, fps=world.fps, on_progress=on_progress)


def record_clips(
    folder: Path,
    world: World,
    *,
    split: Split,
    count: int,
    fps: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` clips, `folder/SPLIT-NUMBER.mp4`, and their captions; the same bytes every time.

    What is there already from an earlier call is kept.

    Returns:
        the list of captions, a CSV with the columns `path` and `caption`, as `lumos tokenize` reads it.
    Raises:
        DataError: the folder holds clips of another world.
    """
    make_folder(folder)
    seeded = {"seed": seed} if seed else {}  # as before there was another
    _claim(folder / WORLD_FILE, as_json({"split": split, "count": count, **world.described, **seeded}))
    path = folder / CAPTIONS_FILE
    if is_own(path):
        return path
    scenes = {f"{split}-{number:06d}.mp4": world.scene(split, number, seed=seed) for number in range(count)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "caption"), *((name, scene.caption) for name, scene in scenes.items())])
    captions = text.getvalue().encode()
    if digest_of(path) == hashlib.sha256(captions).hexdigest():  # written before there was a record
        return path
    remove_partials(folder, of=lambda name: name in {*scenes, CAPTIONS_FILE})
    for done, (name, scene) in enumerate(scenes.items(), start=1):
        write_atomically(folder / name, encode_mp4(world.film(scene), fps, world.pix_fmt))
        if on_progress is not None:
            on_progress(done, count)
    write_atomically(path, captions)  # last: without it the clips are not complete
    return path


def _claim(path: Path, description: dict[str, Any]) -> None:
    """Say what the folder is for, unless it is for something else."""
    is_new = not os.path.lexists(path)
    there = (
        description
        if is_new
        else read_json(path, dict[str, Any], fix="remove the folder, or set world.folder to another")
    )
    found = list(differences(there, description))
    if found:
        fix = "remove the folder, or set world.folder to another"
        if [difference.where for difference in found] == ["count"]:
            _, got, expected = found[0]
            raise DataError("another number of clips is here", file=path.parent, got=got, expected=expected, fix=fix)
        raise DataError("clips of another world are here", file=path.parent, fix=fix)
    if is_new:
        write_atomically(path, json.dumps(description, indent=1))
