"""One experiment's configuration: defaults, then experiments/EXP.yaml, then key=value from the command line.

Each part's settings are a frozen dataclass beside the part. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

import copy
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeVar

from callbacks.config import CallbackConfig
from data_modules.config import DataConfig
from data_modules.pixel_data import PixelDataConfig
from data_modules.shards.places import check_root
from experiments.loggers import check_logger
from experiments.merging import (
    build,
    changed_by,
    check_interpolations,
    defaults,
    merge,
    merge_overrides,
    resolved,
)
from experiments.own_parts import import_kinds, named_kinds, named_parts, refuse_imports
from experiments.prior import PriorConfig
from experiments.trainer_config import TrainerConfig
from experiments.user_files import search_beside
from experiments.yaml_text import check_text, read_yaml_file, to_yaml_text
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.checkpoints.named import LATEST, with_found_places
from lumos_pl.checkpoints.opening import CONFIG_CHECKS
from lumos_pl.checkpoints.saving import CheckpointConfig
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.settings.idle import refuse_idle
from lumos_pl.settings.places import check_local
from lumos_pl.settings.plain import to_plain
from lumos_pl.settings.ranges import between, check_ranges
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.tokenizers.load import refuse_code
from lumos_pl.tokenizers.reconstruction_loss import OF_LEVELS, ReconstructionConfig
from lumos_pl.tokenizers.trained import TokenizerConfig
from lumos_pl.tokenizers.transform_start import Start

FOLDER = Path(__file__).parent
MOST_NAME_BYTES, MOST_PATH_BYTES = 200, 2000  # which leave room for the names of what is inside
UPLOAD = "give a folder of this machine; checkpoint.upload=URL copies its checkpoints there, and brings them back"
TASK = "task"  # in a YAML: what is trained
INTERPOLATION = re.compile(r"(\\*)\$\{")
SHARDS = "shards"  # the reader of our own
# Of the callbacks: what only a model's run shows.
OF_MODELS = "heatmap_every_n_steps", "prompts", "fidelity_captions"
BASE = "base"  # in a YAML of the user's: the experiment it starts from


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
        name: null for a timestamp.
    """

    dir: str = "runs"
    name: str | None = None

    def __post_init__(self) -> None:
        check_place("run.dir", self.dir)
        if self.dir.startswith("~"):  # which a shell expands where it stands alone
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
    """What the experiments of every task have in common.

    Args:
        about: one line for the table of experiments.
        seed: of the weights, the order of the data, and every mask.
        run: where the run's folder goes.
        world: the made-up world, whose clips are made before training where asked for.
        loggers: who is told of the metrics beside metrics.jsonl: `tensorboard`, `csv`, `wandb`, `mlflow`, or
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
    """A Lumos-1 model: everything a run depends on.

    Args:
        task: `lumos`: a model of this kind is trained.
        init_from: a run's checkpoint, or a folder in the released format, to take the weights from.
        visual_tokenizer: what decodes codes for pictures: `embedded`, a file of ours, or a folder of
            Cosmos's; null: codes are shown in false colours.
        clip: size of the clips that are generated, in training and by `lumos sample`.
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
    """A visual tokenizer of our own: everything a run depends on.

    Args:
        task: `tokenizer`: such a tokenizer is trained.
        tokenizer: its shape.
        start: its first weights: `random`, or `transform`: of a transform coder, which gives pictures back before it
            has learned anything, and trains in a fraction of the steps at a third of the learning rate.
        loss: what its reconstructions are asked for.
        data: the videos.
    """

    task: Literal["tokenizer"] = "tokenizer"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    start: Start = "random"
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    data: PixelDataConfig = field(default_factory=PixelDataConfig)

    def idle(self) -> dict[str, str | None]:
        """See settings/idle.py; what is turned off changes nothing anyhow."""
        of_models = {f"callbacks.{name}": None for name in OF_MODELS if getattr(self.callbacks, name)}
        of_fsq = {f"loss.{name}": "tokenizer.kind" for name in OF_LEVELS} if self.tokenizer.kind != "fsq" else {}
        return of_models | of_fsq


Config = ExperimentConfig | TokenizerExperimentConfig
Settings = TypeVar("Settings")
TASKS: dict[str, type[Config]] = {"lumos": ExperimentConfig, "tokenizer": TokenizerExperimentConfig}


def experiment_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of an experiment with `key=value` overrides.

    The kinds of the user's own that it names are imported, see own_parts.py: the files and the words are the user's.

    Args:
        name: of a file of this folder, or the path of one that ends in .yaml.

    Raises:
        ConfigError: unknown experiment or key (the nearest is named), a value that does not fit, or an override of
            what nothing reads as the rest stands.
    """
    files = dict(_with_bases(_experiment_file(name)))
    schema = _schema(next(iter(files)), *reversed(files.values()))
    settings = defaults(schema)
    for file, content in reversed(files.items()):
        check_interpolations(content, file)
        settings = merge(schema, settings, content, source=file)
    values = resolved(schema, merge_overrides(schema, settings, overrides))
    search_beside(file for file in files if file.parent != FOLDER)
    import_kinds(schema, values)
    config = build(schema, values)
    _with_local_places(config)
    refuse_idle(config, changed_by(overrides))
    return config


def _with_local_places(config: Config) -> Config:
    """Raise ConfigError at a URL where a path belongs; a reader of one's own may take what it likes."""
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


def read_config(file: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run wrote down, with overrides; only kinds that the overrides name are imported."""
    return saved_config(read_yaml_file(file), file, overrides)


def saved_config(
    content: Mapping[str, Any], file: Path, overrides: Sequence[str] = (), *, without: Sequence[str] = ()
) -> Config:
    """The configuration that a checkpoint holds, with overrides; only kinds that the overrides name are imported.

    Args:
        content: as `plain` gave it, now or before; what it lacks has its default.
        file: the checkpoint, for messages.
        without: sections that nobody will ask for, and that therefore may name what is not here.
    """
    schema, values = _saved(content, file, overrides, without)
    import_kinds(schema, changed_by(overrides))
    config = build(schema, values)
    refuse_idle(config, changed_by(overrides))
    return config


def saved_values(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The settings that a checkpoint holds in today's keys, with today's defaults; nothing is built or imported."""
    return _saved(content, file, ())[1]


def config_to_resume(file: Path, overrides: Sequence[str] = (), *, allow_imports: bool = False) -> Config:
    """The configuration that a run goes on with, parts of the user's own imported where that is allowed.

    Raises:
        ConfigError: the file names such parts, which the overrides do not, and it is not allowed.
        CheckpointError: so it does with a visual tokenizer that is code.
    """
    schema, content = _saved(with_found_places(read_yaml_file(file), file), file, overrides)
    if not allow_imports:
        asked = changed_by(overrides)
        refuse_imports(named_parts(schema, content) - named_parts(schema, asked), file)
        if (tokenizer := content.get("visual_tokenizer")) != asked.get("visual_tokenizer"):
            refuse_code(tokenizer, file)
    import_kinds(schema, content)
    config = build(schema, content)
    refuse_idle(config, changed_by(overrides))
    return _with_local_places(config)


def _saved(
    content: Mapping[str, Any], file: Path, overrides: Sequence[str], without: Sequence[str] = ()
) -> tuple[type[Config], dict[str, Any]]:
    current = as_it_stands(in_current_keys(content))
    restored = {key: value for key, value in current.items() if key not in without}
    schema = _schema(file, restored)
    settings = merge(schema, defaults(schema), restored, source=file)
    return schema, resolved(schema, merge_overrides(schema, settings, overrides))


def check_saved_config(content: Mapping[str, Any], file: Path) -> None:
    """Raise ConfigError if an evaluation could not read the configuration in a checkpoint.

    What names kinds of somebody's own, which nobody imports, is left out; so is what a module in somebody's own Trainer
    says of itself, which has no section of a run.
    """
    if not content:
        return
    current = copy.deepcopy(in_current_keys(content))
    schema = _schema(file, current)
    if "run" not in current:
        current = {name: current[name] for name in current.keys() & {item.name for item in fields(schema)}}
    for key, word, known in list(named_kinds(schema, current)):
        if word not in known:
            *sections, name = key.split(".")
            del reduce(operator.getitem, sections, current)[name]
    saved_config(current, file)


CONFIG_CHECKS.append(check_saved_config)


def as_it_stands(value: Any) -> Any:
    """Texts that a file of a run holds are that, and nothing to be filled in: no variable of the environment is."""
    match value:
        case dict():
            return {key: as_it_stands(item) for key, item in value.items()}
        case list():
            return [as_it_stands(item) for item in value]
        case str():
            return INTERPOLATION.sub(r"\1\1\\${", value)  # backslashes before it count double
    return value


def with_overrides(settings: Settings, overrides: Sequence[str]) -> Settings:
    """The same settings with `key=value` changes, whose kinds of the user's own are imported.

    Raises:
        ConfigError: unknown key (the nearest is named), or a value that does not fit.
    """
    schema = type(settings)
    values = resolved(schema, merge_overrides(schema, as_it_stands(to_plain(settings)), overrides))
    import_kinds(schema, values)  # all that is not registered is of the overrides
    changed = build(schema, values)
    refuse_idle(changed, changed_by(overrides))
    return changed


def _schema(file: Path, *contents: Mapping[str, Any]) -> type[Config]:
    """The task's settings; a task set later wins."""
    said = [content[TASK] for content in contents if TASK in content]
    task = said[-1] if said else "lumos"
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError("unknown task", file=file, where=TASK, got=repr(task)[:100], expected=" or ".join(TASKS))
    return TASKS[task]


def plain(config: Config) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, for files and checkpoints."""
    return to_plain(config)


def to_yaml(config: Config) -> str:
    return to_yaml_text(plain(config))


def run_group(name: str) -> str:
    """What an experiment's runs lie under: its name, or that of its file."""
    return Path(name).stem if name.endswith(".yaml") else name


def _experiment_file(name: str) -> Path:
    if name.endswith(".yaml"):
        return Path(name)
    file = FOLDER / f"{name}.yaml"
    if Path(name).name != name or not file.is_file():
        raise ConfigError(
            "unknown experiment",
            got=repr(name),
            expected=f"one of {', '.join(experiment_names())}, or a .yaml file",
            fix=did_you_mean(name, experiment_names()),
        )
    return file


def _with_bases(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file and what it says, the one it is based on, and so on."""
    seen = []
    while file not in seen:
        seen.append(file)
        content = read_yaml_file(file)
        base = content.pop(BASE, None)
        yield file, content
        if base is None:
            return
        if not isinstance(base, str):
            raise ConfigError("not the name of an experiment", file=file, where=BASE, got=repr(base)[:100])
        file = _experiment_file(base)
    raise ConfigError("experiments are based on each other", file=file)
