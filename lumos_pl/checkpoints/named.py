"""Names that stand for a model's path: `latest` for the newest run, `embedded` for what comes with the project."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from lumos_pl.checkpoints.complete import kept_checkpoints
from lumos_pl.errors import ConfigError

EMBEDDED, LATEST = "embedded", "latest"


def resolve_named(path: Path) -> Path:
    """The path that is meant; one that exists as it stands is left alone.

    `embedded` alone is the folder, in the released layout, with the model that `make demo-full` made;
    `latest` anywhere is replaced by the newest run beside it that has a checkpoint.

    Raises:
        ConfigError: there is no such run yet.
    """
    if path.exists():
        return path
    if path == Path(EMBEDDED):
        with as_file(files("lumos_pl.checkpoints") / EMBEDDED) as folder:
            return folder
    if LATEST not in path.parts:
        return path
    place = path.parts.index(LATEST)
    folder = Path(*path.parts[:place])
    configs = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for run in (config.parent for config in configs):
        if kept_checkpoints(run / "checkpoints"):
            return run.joinpath(*path.parts[place + 1 :])
    raise ConfigError("no run with a checkpoint yet", file=folder, fix="train one first, or give its path")
