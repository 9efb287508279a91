"""What a resumed run says of settings that are not those its checkpoint was made with, and that can change the weights.

terminal         changed: optimizer.lr | 0.001 -> 0.002
changes.jsonl    {"step": 4, "setting": "optimizer.lr", "before": 0.001, "now": 0.002}
loggers          the same as text, at the step
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from experiments.config import Config, plain
from experiments.read_config import saved_values
from lumos_pl.checkpoints.description import said_by
from lumos_pl.checkpoints.named import PLACES, WORDS, found_again
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.own_files import is_own
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.settings.differences import Difference, differences

CHANGED = "settings changed"

SAME_WEIGHTS = (  # settings, and whole sections, that no weight depends on; every other one counts
    "about", "run", "loggers", "callbacks", "checkpoint", "clip", "sampling",
    "init_from",  # what the run started from; a resumed one starts from its checkpoint
    "world.folder", "prior.folder",  # where the clips lie, not which
    "data.num_workers", "data.timeout_s", "data.retry", "data.cache", "data.max_bad_samples", "data.val_root",
    "data.val_batches",
    "trainer.val_every_n_steps", "trainer.rank_timeout_s", "trainer.start_timeout_s", "trainer.grace_s",
    *(f"trainer.lightning.{name}" for name in (
        "profiler", "limit_val_batches", "num_sanity_val_steps", "enable_model_summary", "inference_mode",
    )),
)  # fmt: skip
OF_A_SOURCE = re.compile(r"^data\.sources\.[^.]+\.")  # whose settings are called as those of all data
ANY_CODE = ("callbacks.extra",)  # may do anything to them, all the same


def weight_changes(made_with: Mapping[str, Any], config: Config, checkpoint: Path) -> list[Difference]:
    """The settings that can change the weights and differ from what a checkpoint was made with.

    Args:
        made_with: the configuration in the checkpoint; what it lacks has its default, and keys may be those of before.
    Raises:
        CheckpointError: it is no configuration.
    """
    with said_by(checkpoint):
        made = saved_values(made_with, checkpoint)
    found = (change for change in differences(made, plain(config)) if counts(change.where))
    return [change for change in found if not _is_same_place(change, checkpoint)]


def _is_same_place(change: Difference, checkpoint: Path) -> bool:
    """Whether a path was only found again from another folder."""
    both = [path for path in (change.made, change.asked) if isinstance(path, str) and path not in WORDS]
    if not PLACES.fullmatch(change.where) or len(both) < 2:
        return False
    return len({Path(found_again(path, checkpoint)).resolve() for path in both}) == 1


def counts(where: str) -> bool:
    """Whether weights can depend on a setting."""

    def within(names: Sequence[str]) -> bool:
        return any(where == name or where.startswith(f"{name}.") for name in names)

    where = OF_A_SOURCE.sub("data.", where)
    return not within(SAME_WEIGHTS) or within(ANY_CODE)


def refuse_foreign(
    changes: Sequence[Difference], made_with: Mapping[str, Any], config: Config, checkpoint: Path
) -> None:
    """Raise CheckpointError at another run's checkpoint that was made with other settings.

    A run's own settings may be changed, in its config.yaml or by overrides, and are then said; but no change of theirs
    explains why a checkpoint says that it is of a run with another name. A copy with the same settings is taken.
    """
    run = made_with.get("run")
    name = run.get("name") if isinstance(run, Mapping) else None
    if changes and name is not None and config.run.name is not None and name != config.run.name:
        where, made, now = changes[0]
        raise CheckpointError(
            f"a checkpoint of another run, {name!r}, made with other settings",
            file=checkpoint,
            where=where,
            got=_shortly(made),
            expected=_shortly(now),
            fix="move it out of the folder, or add --allow-changes to go on from it all the same",
        )


def describe(change: Difference) -> str:
    return f"{change.where} | {_shortly(change.made)} -> {_shortly(change.asked)}"


def _shortly(value: object) -> str:
    return reprlib.repr(value) if isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)[:100]


def note_changes(file: Path, changes: Sequence[Difference], step: int) -> None:
    """Add the changes to a run's account of them, each once for a step; what is none of it is kept aside."""
    there = read_regular(file, follow=False) if is_own(file) else b""
    entries = ({"step": step, "setting": c.where, "before": c.made, "now": c.asked} for c in changes)
    lines = [f"{json.dumps(entry)}\n".encode() for entry in entries]
    new = b"".join(line for line in lines if line not in there.splitlines(keepends=True))
    write_atomically(file, there + new)


def log_changes(loggers: Sequence[Logger], changes: Sequence[Difference], step: int) -> None:
    """Tell every logger that takes text."""
    rows = [[change.where, _shortly(change.made), _shortly(change.asked)] for change in changes]
    text = "  \n".join(map(describe, changes))
    for logger in loggers if changes else ():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(CHANGED, text, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.set_tag(logger.run_id, f"{CHANGED} at step {step}", text)
        elif hasattr(logger, "log_text"):  # Weights & Biases' kind
            logger.log_text(key=CHANGED, columns=["setting", "before", "now"], data=rows, step=step)
