"""The runs of a study: their folders, settings, and what is made of each trained model.

runs/studies/NAME/CELL/     a run's folder as any other
                  eval.json, eval.npz             what its clips were judged, and some to look at; of a study
                  eval/LABELS.json, .npz          with `sampling`: of each of its combinations
                  log.txt  failure.json           what the cell's process printed, and why it ended before its time
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import Config, ExperimentConfig, load_experiment, plain, read_config
from experiments.run_folder import RunFolder
from experiments.sample.folder import first_difference
from experiments.study.config import Study, Variant
from experiments.train import with_resolved_start
from lumos_pl.checkpoints.complete import write_atomically
from lumos_pl.errors import ConfigError
from lumos_pl.sampling.config import SamplingConfig

# A study judges and draws at the end, for all of its cells alike. Figures of every step, so that they do not depend
# on where a cell was stopped: longer means would begin anew there.
OWN = [
    "callbacks.progress_bar=false",
    "callbacks.log_every_n_steps=1",
    "callbacks.heatmap_every_n_steps=0",
    "callbacks.sample_grid_every_n_steps=0",
    "callbacks.sampled_clips_every_n_steps=0",
    "callbacks.fidelity_captions=0",
]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Clips drawn from a cell's model in one way.

    Args:
        variant: how, in the study's words.
        file: for the figures; the clips to look at lie beside it.
        asked: all that the figures depend on beside the model, plain values.
    """

    variant: Variant
    file: Path
    asked: dict[str, Any]

    @property
    def clips_file(self) -> Path:
        return self.file.with_suffix(".npz")

    def is_done(self) -> bool:
        return self.file.is_file() and json.loads(self.file.read_text())["asked"] == self.asked


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, and the evaluations of what came out of it."""

    variant: Variant
    seed: int
    config: Config
    folder: RunFolder
    evaluations: tuple[Evaluation, ...]

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
        return json.loads(self.failure.read_text())["message"] if self.failure.is_file() else None

    def is_trained(self) -> bool:
        return self.folder.has_ended(self.config.trainer.max_steps)

    def is_done(self) -> bool:
        return self.is_trained() and all(evaluation.is_done() for evaluation in self.evaluations)

    def begin(self) -> None:
        """Write down what the cell is, unless it has begun already."""
        if not self.folder.config.is_file():
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.folder.write_config(self.config)

    def note_failure(self, status: int, message: str) -> None:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.failure, json.dumps({"status": status, "message": message}) + "\n")


def plan_cells(study: Study, overrides: Sequence[str]) -> list[Cell]:
    """All cells, their settings read and checked, before any of them runs.

    Args:
        overrides: of every cell, over the study's; the grid's own win.
    Raises:
        ConfigError: settings that do not fit, or a cell that was begun with others.
    """
    cells = [cell for variant in study.trained for cell in _plan_variant(study, variant, overrides)]
    for cell in cells:
        _refuse_other_settings(cell)
    return cells


def _plan_variant(study: Study, variant: Variant, overrides: Sequence[str]) -> Iterator[Cell]:
    """A cell per seed; the settings are read once, which takes long."""
    read = load_experiment(study.base, [*study.overrides, *overrides, *variant.overrides, *OWN])
    read = with_resolved_start(read)
    if study.captions and not (isinstance(read, ExperimentConfig) and read.visual_tokenizer):
        raise ConfigError("clips cannot be judged without a visual tokenizer", where=f"{study.name}: captions")
    for seed in study.seeds:
        name = "-".join(filter(None, [variant.file_name, f"seed{seed}"]))
        run = replace(read.run, dir=str(Path(read.run.dir) / "studies"), name=name)
        config = replace(read, seed=seed, run=run)
        folder = RunFolder.named(study.name, config)
        evaluations = tuple(_plan_evaluations(study, config, folder.path))
        yield Cell(variant=variant, seed=seed, config=config, folder=folder, evaluations=evaluations)


def _plan_evaluations(study: Study, config: Config, folder: Path) -> Iterator[Evaluation]:
    for sampled in study.sampled if study.captions else []:
        try:
            asked_for = OmegaConf.from_dotlist(list(sampled.overrides))
            merged = OmegaConf.merge(OmegaConf.structured(config.callbacks.sampling), asked_for)
            sampling = asdict(cast(SamplingConfig, OmegaConf.to_object(merged)))
        except OmegaConfBaseException as error:
            message = str(error).split("\n")[0]
            raise ConfigError("value does not fit", where=f"{study.name}: sampling", got=message) from None
        where = f"eval/{sampled.file_name}.json" if sampled.labels else "eval.json"
        asked = {"captions": study.captions, "sampling": sampling}
        yield Evaluation(variant=sampled, file=folder / where, asked=asked)


def _refuse_other_settings(cell: Cell) -> None:
    if not cell.folder.config.is_file():
        return
    begun = read_config(cell.folder.config)
    if (difference := first_difference(plain(begun), plain(cell.config))) is not None:
        where, made, asked = difference
        raise ConfigError(
            "this cell was begun with other settings",
            file=cell.folder.path,
            where=where,
            got=asked,
            expected=made,
            fix="ask for the same, remove the folder, or go elsewhere with run.dir",
        )
