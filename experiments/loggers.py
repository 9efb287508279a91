"""Who is told of a run's metrics beside metrics.jsonl: Lightning's loggers, by a word or by their class path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.own_parts import CLASS_PATH, INIT_ARGS, build_part, import_class
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.settings.kinds import ClassPath

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


def _wandb(folder: Path) -> dict[str, Any]:
    same = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]  # a resumed run goes on where it was
    return {"save_dir": str(folder), "project": folder.parent.name, "name": folder.name, "id": same}


def _mlflow(folder: Path) -> dict[str, Any]:
    at = (folder / "mlruns").resolve().as_uri()
    return {"tracking_uri": at, "experiment_name": folder.parent.name, "run_name": folder.name}


LOGGERS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {  # a class, and its arguments by the run's folder
    "tensorboard": ("callbacks.tensorboard_logger.RunTensorBoard", lambda folder: {"folder": folder}),
    # A folder for each start: its logger deletes what is in its own.
    "csv": ("lightning.pytorch.loggers.CSVLogger", lambda folder: {"save_dir": str(folder), "name": "csv"}),
    "wandb": ("lightning.pytorch.loggers.WandbLogger", _wandb),
    "mlflow": ("lightning.pytorch.loggers.MLFlowLogger", _mlflow),
}


def check_logger(entry: object, where: str) -> None:
    """Raise ConfigError unless an entry of `loggers` is one of the words or a class path."""
    if isinstance(entry, str):
        if entry not in LOGGERS:
            known = f"{', '.join(LOGGERS)}, or {{class_path: FILE.CLASS}}"
            raise ConfigError(
                "unknown logger", where=where, got=entry, expected=known, fix=did_you_mean(entry, LOGGERS)
            )
    elif not (
        isinstance(entry, Mapping)
        and isinstance(entry.get(CLASS_PATH), str)
        and isinstance(entry.get(INIT_ARGS, {}), Mapping)
        and entry.keys() <= {CLASS_PATH, INIT_ARGS}
    ):
        raise ConfigError("not a logger", where=where, got=repr(entry), expected="a word, or class_path and init_args")


def class_of(entry: str | Mapping[str, Any]) -> ClassPath:
    """An entry's class, and what it is called with beside the defaults."""
    if isinstance(entry, str):
        return ClassPath(class_path=LOGGERS[entry][0])
    return ClassPath(class_path=entry[CLASS_PATH], init_args=dict(entry.get(INIT_ARGS, {})))


def import_loggers(entries: Sequence[str | Mapping[str, Any]]) -> None:
    """Raise what `build_loggers` would raise of the classes, without making any."""
    from lightning.pytorch.loggers import Logger

    for place, entry in enumerate(entries):
        import_class(class_of(entry), Logger, f"loggers[{place}]")


def build_loggers(entries: Sequence[str | Mapping[str, Any]], folder: Path) -> list[Logger]:
    """The loggers, whose files go into the run's folder where nothing else is said.

    Raises:
        ConfigError: no such class, its arguments do not fit, or its package is not installed.
    """
    from lightning.pytorch.loggers import Logger

    made = []
    for place, entry in enumerate(entries):
        package = f"'lumos_pl[{entry}]'" if isinstance(entry, str) else None
        defaults = LOGGERS[entry][1](folder) if isinstance(entry, str) else {"save_dir": str(folder)}
        made.append(build_part(class_of(entry), Logger, f"loggers[{place}]", package=package, **defaults))
    return made
