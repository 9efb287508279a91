"""`latest` in a path: the newest run."""

from __future__ import annotations

from pathlib import Path

from lumos_pl.checkpoints.complete import kept_checkpoints
from lumos_pl.errors import ConfigError

LATEST = "latest"


def resolve_latest(path: Path) -> Path:
    """The path with `latest`, if it is in there, replaced by the newest run beside it that has a checkpoint.

    A path that exists as it stands is left alone.

    Raises:
        ConfigError: there is no such run yet.
    """
    if path.exists() or LATEST not in path.parts:
        return path
    place = path.parts.index(LATEST)
    folder = Path(*path.parts[:place])
    configs = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for run in (config.parent for config in configs):
        if kept_checkpoints(run / "checkpoints"):
            return run.joinpath(*path.parts[place + 1 :])
    raise ConfigError("no run with a checkpoint yet", file=folder, fix="train one first, or give its path")
