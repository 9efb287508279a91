"""All settings of an experiment. Each part's settings are a frozen dataclass next to that part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from callbacks.config import CallbackConfig
from data_modules.config import DataConfig
from data_modules.pixel_data import PixelDataConfig
from data_modules.shards.places import check_root
from experiments.loggers import check_logger
from experiments.prior import PriorConfig
from experiments.trainer_config import TrainerConfig
from experiments.yaml_text import check_text, to_yaml_text
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.checkpoints.named import LATEST
from lumos_pl.checkpoints.saving import CheckpointConfig
from lumos_pl.errors import ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.settings.places import check_local
from lumos_pl.settings.plain import to_plain
from lumos_pl.settings.ranges import between, check_ranges
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.tokenizers.reconstruction_loss import OF_LEVELS, ReconstructionConfig
from lumos_pl.tokenizers.trained import TokenizerConfig
from lumos_pl.tokenizers.transform_start import Start

MOST_NAME_BYTES, MOST_PATH_BYTES = 200, 2000  # leaves room for the names of files inside
UPLOAD = "give a folder of this machine; checkpoint.upload=URL copies its checkpoints there, and brings them back"
TASK = "task"  # in a YAML: what is trained
SHARDS = "shards"  # the name of our own reader
# Settings of the callbacks that only apply to a model's run.
OF_MODELS = "heatmap_every_n_steps", "prompts", "fidelity_captions"


def check_place(where: str, path: str) -> None:
    """Raise ConfigError unless a setting can be the path of a folder."""
    check_text(path, where)
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    if not path or longest > MOST_NAME_BYTES or len(os.fsencode(path)) > MOST_PATH_BYTES:
        expected = f"names of up to {MOST_NAME_BYTES} bytes, {MOST_PATH_BYTES} in all"
        raise ConfigError("not the path of a folder", where=where, got=repr(path[:60]), expected=expected)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run's folder goes: dir/EXP/name.

    Args:
        dir: holds the runs of all experiments.
        name: null: a timestamp.
    """

    dir: str = "runs"
    name: str | None = None

    def __post_init__(self) -> None:
        check_place("run.dir", self.dir)
        if self.dir.startswith("~"):  # a shell expands it only at the start of a word
            fix = "write the folder out, or $HOME, which the shell expands anywhere"
            raise ConfigError("not the path of a folder", where="run.dir", got=repr(self.dir[:60]), fix=fix)
        if self.name is None:
            return
        check_place("run.name", self.name)
        is_plain = Path(self.name).name == self.name and self.name.isprintable()
        if not is_plain or self.name.startswith((".", "~")) or self.name == LATEST:
            raise ConfigError("not a name for a run", where="run.name", got=repr(self.name))


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Settings that the experiments of every task share.

    Args:
        about: one line for the table of experiments.
        seed: for the weights, the order of the data, and every mask.
        run: where the run's folder goes.
        world: the made-up world, whose clips are made before training if asked for.
        loggers: what metrics are sent to besides metrics.jsonl: `tensorboard`, `csv`, `wandb`, `mlflow`, or
            {class_path, init_args}.
    """

    about: str = ""
    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    world: WorldClipsConfig = field(default_factory=WorldClipsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: CallbackConfig = field(default_factory=CallbackConfig)
    loggers: list[Any] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        check_ranges("", self, seed=between(-(2**63), 2**63 - 1))
        for place, logger in enumerate(self.loggers):
            check_logger(logger, f"loggers[{place}]")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(CommonConfig):
    """A Lumos-1 model: everything that a run depends on.

    Args:
        task: `lumos`: such a model is trained.
        init_from: a run's checkpoint, or a folder in the released format, to take the weights from.
        visual_tokenizer: what decodes codes for pictures: `embedded`, a file of ours, or a folder with Cosmos's files;
            null: codes are shown in false colours.
        clip: format of the clips that are generated, in training and by `lumos sample`.
        sampling: how clips are generated, there and by `lumos eval`.
    """

    task: Literal["lumos"] = "lumos"
    init_from: str | None = None
    visual_tokenizer: str | None = None
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipFormat = field(default_factory=ClipFormat)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter.is_on and self.init_from is None:
            fix = "set init_from to the checkpoint that it is to belong to"
            raise ConfigError("an adapter of nothing", where="init_from", got="null", fix=fix)


@dataclass(frozen=True, kw_only=True)
class TokenizerExperimentConfig(CommonConfig):
    """A visual tokenizer of our own: everything that a run depends on.

    Args:
        task: `tokenizer`: such a tokenizer is trained.
        tokenizer: its shape.
        start: its first weights: `random`, or `transform`: those of a transform coder, which reconstructs pictures
            before any training and needs a fraction of the steps, at a third of the learning rate.
        loss: what its reconstructions are trained for.
        data: the videos.
    """

    task: Literal["tokenizer"] = "tokenizer"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    start: Start = "random"
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    data: PixelDataConfig = field(default_factory=PixelDataConfig)

    def idle(self) -> dict[str, str | None]:
        """See settings/idle.py; pictures that are turned off need no mention."""
        of_models = {f"callbacks.{name}": None for name in OF_MODELS if getattr(self.callbacks, name)}
        of_fsq = {f"loss.{name}": "tokenizer.kind" for name in OF_LEVELS} if self.tokenizer.kind != "fsq" else {}
        return of_models | of_fsq


Config = ExperimentConfig | TokenizerExperimentConfig
TASKS: dict[str, type[Config]] = {"lumos": ExperimentConfig, "tokenizer": TokenizerExperimentConfig}


def schema_of(file: Path, *contents: Mapping[str, Any]) -> type[Config]:
    """The settings class of the task; a later task overrides an earlier one."""
    said = [content[TASK] for content in contents if TASK in content]
    task = said[-1] if said else "lumos"
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError("unknown task", file=file, where=TASK, got=repr(task)[:100], expected=" or ".join(TASKS))
    return TASKS[task]


def with_local_places(config: Config) -> Config:
    """Raise ConfigError at a URL where a local path belongs; a custom reader may take anything."""
    check_local("run.dir", config.run.dir, fix=UPLOAD)
    check_local("world.folder", config.world.folder)
    if not isinstance(config, ExperimentConfig):
        check_local("data.root", config.data.root)
        check_local("data.val_root", config.data.val_root)
    else:
        for where, root in config.data.roots.items() if config.data.reader == SHARDS else ():
            check_root(root, where)
        check_local("data.cache.dir", config.data.cache.dir, fix="give a folder on a disk of this machine")
        check_local("data.text_tokenizer", config.data.text_tokenizer)
        check_local("prior.captions", config.prior.captions)
        check_local("prior.folder", config.prior.folder)
        check_local("visual_tokenizer", config.visual_tokenizer)
        check_local("init_from", config.init_from)
    return config


def plain(config: Config) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, for files and checkpoints."""
    return to_plain(config)


def to_yaml(config: Config) -> str:
    return to_yaml_text(plain(config))
