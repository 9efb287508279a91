"""The runs of a study: their folders, settings, and what is made of each trained model.

runs/studies/NAME/CELL/     a run's folder as any other
                  evals/EVALUATION/               what `lumos eval` writes, and clips.npz, some clips to look at
                  evals/EVALUATION/LABELS/        with `sampling` or `at`: the same of each combination
                  log.txt  failure.json           what the cell's process printed, and why it ended before its time
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import with_config
from typing_extensions import TypedDict

from experiments.config import Config, ExperimentConfig, plain
from experiments.evaluation.beforehand import check_beforehand, is_measured, measured_names
from experiments.evaluation.evaluate import FILE, TIMES_FILE
from experiments.evaluation.report import Result, Times
from experiments.evaluation.settings import EvalSettings
from experiments.read_config import load_experiment, read_config
from experiments.run_folder import RunFolder
from experiments.start import with_resolved_start
from experiments.study.config import Study, Variant, study_names
from experiments.study.logged import logged_names
from lumos_pl.checkpoints.complete import checkpoint_name
from lumos_pl.checkpoints.earlier_keys import current_key
from lumos_pl.errors import ConfigError, DataError, did_you_mean
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.json_file import read_json
from lumos_pl.machinery.own_files import partial_of, put
from lumos_pl.settings.differences import differences

# A study judges and paints at the end, for all of its cells alike. Figures of every step, so that they do not depend
# on where a cell was stopped: longer means would begin anew there.
OWN = [
    "callbacks.progress_bar=false",
    "callbacks.log_every_n_steps=1",
    "callbacks.heatmap_every_n_steps=0",
    "callbacks.sample_grid_every_n_steps=0",
    "callbacks.sampled_clips_every_n_steps=0",
    "callbacks.fidelity_captions=0",
]

# Where models are judged on the way, their checkpoints have to be there: those of all steps that divide them all.
SAVED = ["checkpoint.every_n_steps={0}", "checkpoint.keep_every_n_steps={0}"]

OF_A_STUDY = {"seed": "`seeds` in the study's file", "run.name": "the file another name"}


@with_config(extra="forbid")
class Failure(TypedDict):
    """What failure.json holds: the exit status of a cell's last attempt, and the line that it ended with."""

    status: int
    message: str | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `lumos eval` measures of a cell's model with one way to sample from it.

    Args:
        name: in the study.
        variant: the way to sample, in the study's words.
        folder: of the results.
        settings: all that they depend on beside the cell.
    """

    name: str
    variant: Variant
    folder: Path
    settings: EvalSettings

    @property
    def file(self) -> Path:
        return self.folder / FILE

    @property
    def clips_file(self) -> Path:
        return self.folder / "clips.npz"

    def model_of(self, run: RunFolder) -> Path:
        """What is judged: a checkpoint on the way, or what came out in the end."""
        step = self.variant.step
        return run.path if step is None else run.checkpoints / checkpoint_name(step)

    def is_done(self) -> bool:
        """Whether the results are there and whole, wherever they were computed."""
        try:
            made = read_json(self.file, Result)["settings"]
            read_json(self.folder / TIMES_FILE, Times)
        except DataError:
            return False  # `evaluate` says what is wrong with a file that is there
        asked = self.settings.recorded()
        overrides = [current_key(word) for word in made.get("overrides", [])]
        return {**made, "device": asked["device"], "overrides": overrides} == asked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, and the evaluations of what came out of it.

    Args:
        reuse: folders of studies whose cells may have been trained alike.
    """

    variant: Variant
    seed: int
    config: Config
    folder: RunFolder
    evaluations: tuple[Evaluation, ...]
    reuse: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def log(self) -> Path:
        return self.folder.path / "log.txt"

    @property
    def failure(self) -> Path:
        return self.folder.path / "failure.json"

    @property
    def message(self) -> str | None:
        """Why the last attempt failed, if it did."""
        return self._last_failure["message"]

    @property
    def status(self) -> int:
        """With which exit status the last attempt failed; of one that did not, or does not say it, 1."""
        status = self._last_failure["status"]
        return status if status > 0 else 1

    @property
    def _last_failure(self) -> Failure:
        if not os.path.lexists(self.failure):
            return {"status": 1, "message": None}
        return read_json(self.failure, Failure, fix="remove it, and run the study again")

    def is_trained(self) -> bool:
        return self.folder.has_ended(self.config.trainer.max_steps)

    def is_done(self) -> bool:
        return self.is_trained() and all(evaluation.is_done() for evaluation in self.evaluations)

    def begin(self) -> None:
        """Write down what the cell is, unless it has begun already."""
        if not self.folder.config.is_file():
            make_folder(self.folder.path)
            self.folder.write_config(self.config)

    def take_over(self) -> Path | None:
        """Copy the finished training of a cell with the same settings, if a study to reuse has one; returns its folder.

        The result comes last: before it is there, nothing takes this cell for trained.
        """
        for file in sorted(file for study in self.reuse for file in study.glob(f"*/{self.folder.config.name}")):
            other = RunFolder(file.parent)
            judged = all(evaluation.model_of(other).exists() for evaluation in self.evaluations)
            if judged and other.has_ended(self.config.trainer.max_steps) and _is_like(file, self.config):
                partial = partial_of(self.folder.checkpoints)
                shutil.copytree(other.checkpoints, partial)
                put(partial, self.folder.checkpoints, own=lambda found: False)  # what is there is kept aside
                for logged in (other.metrics, *other.path.glob("events.out.*")):
                    write_atomically(self.folder.path / logged.name, logged.read_bytes())
                write_atomically(self.folder.result, other.result.read_bytes())
                return other.path
        return None

    def note_failure(self, status: int, message: str) -> None:
        make_folder(self.folder.path)
        write_atomically(self.failure, json.dumps({"status": status, "message": message}) + "\n")


def plan_cells(study: Study, overrides: Sequence[str]) -> list[Cell]:
    """All cells, their settings read and checked, before any of them runs.

    Args:
        overrides: of every cell, over the study's; nothing that the grid sets.
    Raises:
        ConfigError: settings that do not fit, or a cell that was begun with others.
    """
    for key, instead in OF_A_STUDY.items():
        if any(word.startswith(f"{key}=") for word in (*study.overrides, *overrides, *study.grid_words)):
            raise ConfigError("not a setting of single cells", where=study.name, got=key, fix=f"give {instead}")
    of_grid = {word.partition("=")[0] for word in study.grid_words}
    for key in (word.partition("=")[0] for word in overrides):
        if taken := sorted(name for name in of_grid if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.")):
            fix = "run some of the cells with --only, or write a study of your own"
            raise ConfigError("the study's grid sets it", where=key, got=", ".join(taken), fix=fix)
    cells = [cell for variant in study.trained for cell in _plan_variant(study, variant, overrides)]
    for cell in cells:
        _refuse_other_settings(cell)
    return cells


def _plan_variant(study: Study, variant: Variant, overrides: Sequence[str]) -> Iterator[Cell]:
    """A cell per seed; the settings are read once, which takes long."""
    saved = [word.format(math.gcd(*study.at)) for word in SAVED] if study.at else []
    read = load_experiment(study.base, [*study.overrides, *overrides, *variant.overrides, *OWN, *saved])
    read = with_resolved_start(read)
    if study.at and study.at[0] > (last := read.trainer.max_steps):
        where = f"{study.name}: at"
        raise ConfigError("a training ends before it is judged", where=where, got=study.at, expected=f"1 to {last}")
    asked = list(_evaluation_settings(study, read))
    _check_logged(study, read)
    reuse = tuple(_folder_to_reuse(Path(read.run.dir) / "studies", name) for name in study.reuse)
    for seed in study.seeds:
        name = "-".join(filter(None, [variant.file_name, f"seed{seed}"]))
        run = replace(read.run, dir=str(Path(read.run.dir) / "studies"), name=name)
        config = replace(read, seed=seed, run=run)
        folder = RunFolder.named(study.name, config)
        evaluations = tuple(
            Evaluation(name=kind, variant=way, folder=folder.path / "evals" / kind / way.file_name, settings=settings)
            for kind, way, settings in asked
            if way.step is None or way.step <= config.trainer.max_steps
        )
        yield Cell(variant=variant, seed=seed, config=config, folder=folder, evaluations=evaluations, reuse=reuse)


def _folder_to_reuse(studies: Path, name: str) -> Path:
    """Where a study's cells lie, or will once it has run."""
    known = {*study_names(), *(folder.name for folder in studies.glob("*"))}
    if name not in known:
        raise ConfigError("no such study to reuse", where="reuse", got=name, fix=did_you_mean(name, known))
    return studies / name


def _evaluation_settings(study: Study, config: Config) -> Iterator[tuple[str, Variant, EvalSettings]]:
    """Each evaluation with each way to sample; what cannot be measured of such a run is refused."""
    for name, settings in study.evals.items():
        where = f"{study.name}: evals.{name}"
        if not isinstance(config, ExperimentConfig):
            raise ConfigError("no model to evaluate", where=where, got=f"task {config.task}")
        for way in study.sampled:
            own = replace(settings, overrides=(*settings.overrides, *(f"sampling.{word}" for word in way.overrides)))
            check_beforehand(own, config, where)
            yield name, way, own
        _check_measures(study, name, settings, config)


def _check_measures(study: Study, evaluation: str, settings: EvalSettings, config: ExperimentConfig) -> None:
    """Raise ConfigError, with the nearest name, where a measure of the study's is none of this evaluation's."""
    names = measured_names(settings, config)
    for measure, key in study.measures.items():
        source, _, name = key.partition(".")
        if source == evaluation and not is_measured(name, names):
            where, fix = (
                f"{study.name}: measures.{measure}",
                did_you_mean(key, [f"{source}.{known}" for known in names]),
            )
            raise ConfigError("not what this evaluation measures", where=where, got=key, fix=fix)


def _check_logged(study: Study, config: Config) -> None:
    """Raise ConfigError, with the nearest name, where a measure of the study's is nothing that a run logs or says."""
    if (names := logged_names(config)) is None:
        return
    for measure, key in study.measures.items():
        source, _, name = key.partition(".")
        asked = key if source == "metrics" else f"{source}.{name.partition('.')[0]}"
        if source in ("metrics", "result") and not is_measured(asked, names):
            fix = did_you_mean(key, [known for known in names if known.startswith(source)])
            raise ConfigError("nothing that its runs log", where=f"{study.name}: measures.{measure}", got=key, fix=fix)


def _is_like(file: Path, config: Config) -> bool:
    """Whether the run with this configuration trains the same, wherever it lies and however often it is saved."""
    try:
        return plain(replace(read_config(file), run=config.run, checkpoint=config.checkpoint)) == plain(config)
    except ConfigError:  # made by another version of the project, with other keys
        return False


def _refuse_other_settings(cell: Cell) -> None:
    if not cell.folder.config.is_file():
        return
    begun = read_config(cell.folder.config)
    for where, made, asked in differences(plain(begun), plain(cell.config)):
        raise ConfigError(
            "this cell was begun with other settings",
            file=cell.folder.path,
            where=where,
            got=asked,
            expected=made,
            fix="ask for the same, remove the folder, or go elsewhere with run.dir",
        )
