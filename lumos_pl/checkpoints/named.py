"""Names that stand for a path: `latest` for the newest run, `embedded` for what comes with the project."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

from lumos_pl.checkpoints.complete import LAST, kept_checkpoints
from lumos_pl.errors import ConfigError

EMBEDDED, LATEST = "embedded", "latest"


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
