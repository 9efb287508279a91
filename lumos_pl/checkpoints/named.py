"""Names that stand for a path: `latest` for the newest run, `embedded` for what comes with the project.

And relative paths that a run has written down, which are to be found from another working folder too.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from itertools import takewhile
from os.path import exists  # of names that no file can have, pathlib raises
from pathlib import Path
from typing import Any

from lumos_pl.checkpoints.complete import LAST, kept_checkpoints
from lumos_pl.errors import ConfigError

EMBEDDED, LATEST = "embedded", "latest"
WORDS = {EMBEDDED, "general", "synthetic"}  # which stand for no path, see `load_visual_tokenizer` and `DataConfig`
PLACES = re.compile(  # settings of a run that are paths of what is read
    r"init_from|visual_tokenizer|data\.(text_tokenizer|(sources\.[^.]+\.)?(val_)?root)|world\.folder|prior\.(captions|folder)"
)


def resolve_named(path: Path) -> Path:
    """The path of a run or a checkpoint that is meant; one that exists as it stands is left alone.

    `embedded` alone is the folder, in the released format, with the model that `make demo-full` made;
    `latest` anywhere is replaced by the newest run beside it that has a checkpoint; `last.ckpt` is the newest
    checkpoint beside it where the file system has no links.

    Raises:
        ConfigError: there is no such run yet.
    """
    if path == Path(EMBEDDED) and not path.exists():
        with as_file(files("lumos_pl.checkpoints") / EMBEDDED) as folder:
            return folder
    path = resolve_latest(path)
    if path.name == LAST and not os.path.lexists(path) and (kept := kept_checkpoints(path.parent)):
        return kept[-1]
    return path


def resolve_latest(path: Path, *, holding: str | None = None) -> Path:
    """The path with `latest` anywhere in it replaced by the newest run beside it; others are left alone.

    Args:
        holding: the file that a run must have to be meant, a tokenizer's for one; None: a checkpoint.
    Raises:
        ConfigError: there is no such run yet.
    """
    if LATEST not in path.parts or path.exists():
        return path
    place = path.parts.index(LATEST)
    folder = Path(*path.parts[:place])
    configs = filter(Path.is_file, folder.glob("*/config.yaml"))
    for config in sorted(configs, key=lambda config: config.stat().st_mtime_ns, reverse=True):
        run = config.parent
        if kept_checkpoints(run / "checkpoints") if holding is None else (run / holding).is_file():
            return run.joinpath(*path.parts[place + 1 :])
    wanted = "checkpoint" if holding is None else holding
    raise ConfigError(f"no run with a {wanted} yet", file=folder, fix="train one first, or give its path")


def with_found_places(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A run's configuration with the paths in it as `found_again` finds them.

    Args:
        config: plain values, of which nobody knows that they are a configuration.
        file: what holds it, in the run's folder.
    """
    found = copy.deepcopy(dict(config))
    for where, section, name in list(_texts(found)):
        if PLACES.fullmatch(where):
            section[name] = found_again(section[name], file)
    return found


def _texts(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield f"{prefix}{name}", section, name


def found_again(named: str, by: Path) -> str:
    """The path that a file of a run names: as it stands, if something is there or it is absolute.

    Else as it is seen from the nearest folder above that file from which something is there: so it is from the working
    folder of the training, wherever one is now, and still where that folder, or the one of all runs, was moved.
    """
    parts = list(takewhile(lambda part: not set("*?[") & set(part), Path(named).parts))  # the rest is a pattern
    if named in WORDS or not parts or Path(named).is_absolute() or exists(Path(*parts)):  # noqa: PTH110
        return named
    above = (folder for folder in by.absolute().parents if exists(folder.joinpath(*parts)))  # noqa: PTH110
    return next((str(folder / named) for folder in above), named)
