"""One experiment's configuration: defaults, then experiments/EXP.yaml, then key=value from the command line.

Each part's settings are a frozen dataclass beside the part. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from callbacks.config import CallbackConfig
from data_modules.config import DataConfig
from data_modules.pixel_data import PixelDataConfig
from data_modules.shape_world.clips import WorldClipsConfig
from lumos_pl.checkpoints.earlier_keys import current_key, in_current_keys
from lumos_pl.checkpoints.named import LATEST
from lumos_pl.checkpoints.saving import CheckpointConfig
from lumos_pl.devices import resolve_device
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.ranges import at_least, between, check_ranges
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.tokenizers.fsq import FsqConfig
from lumos_pl.tokenizers.fsq_module import ReconstructionConfig

FOLDER = Path(__file__).parent
BASE = "base"  # in a YAML: the experiment it starts from
TASK = "task"  # in a YAML: what is trained


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run's folder goes: dir/EXP/name.

    Args:
        name: null for a timestamp.
    """

    dir: str = "runs"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is None:
            return
        if Path(self.name).name != self.name or self.name.startswith(".") or self.name == LATEST:
            raise ConfigError("not a name for a run", where="run.name", got=repr(self.name))


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and on what to train.

    Args:
        max_steps: optimizer steps in all.
        accumulate: batches per step and process.
        precision: `32-true`, or `bf16-mixed` (norms, loss and weights stay fp32).
        accelerator: `cpu`, `gpu`, or `auto` (a GPU if there is one).
        devices: processes per node, one per GPU.
        strategy: `auto` (one process, or DDP), `ddp`, or `fsdp2` (sharded).
        shard_size: of fsdp2: neighbouring processes that share one copy of the weights; several groups of them
            are HSDP. Null: one copy shared by all processes; `auto`: that, or a copy per node, see
            experiments/plan/placement.py.
        reshard_after_forward: of fsdp2: gather each layer's weights anew for its backward pass, instead of keeping
            them from its forward pass; `auto`: only where they would not fit.
        cpu_offload: of fsdp2: weights, gradients and optimizer rest in the host's memory, where the update runs too.
        val_every_n_steps: 0 for never.
        rank_timeout_s: how long a process waits for the others before the run ends.
    """

    max_steps: int = 1000
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["cpu", "gpu", "auto"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    shard_size: int | Literal["auto"] | None = "auto"
    reshard_after_forward: Literal["auto", True, False] = "auto"
    cpu_offload: bool = False
    val_every_n_steps: int = 0
    rank_timeout_s: int = 1800

    def __post_init__(self) -> None:
        counted = between(1, 10**9)
        check_ranges(
            "trainer",
            self,
            max_steps=counted,
            accumulate=counted,
            devices=counted,
            num_nodes=counted,
            rank_timeout_s=counted,
            val_every_n_steps=at_least(0),
        )
        self._check_sharding()

    def _check_sharding(self) -> None:
        of_fsdp2 = {"shard_size": ("auto", None), "reshard_after_forward": ("auto",), "cpu_offload": (False,)}
        for name, off in of_fsdp2.items():
            if getattr(self, name) not in off and self.strategy != "fsdp2":
                raise ConfigError(
                    "of fsdp2 alone",
                    where=f"trainer.{name}",
                    got=getattr(self, name),
                    fix="trainer.strategy=fsdp2, or leave it out",
                )
        if isinstance(self.shard_size, int) and (self.shard_size < 1 or self.processes % self.shard_size):
            raise ConfigError(
                "does not divide the processes",
                where="trainer.shard_size",
                got=self.shard_size,
                expected=f"a divisor of {self.processes} (devices x num_nodes)",
                fix="null shards over all of them",
            )

    @property
    def works_on_cpu(self) -> bool:
        """Whether `accelerator` stands for the CPU on this machine."""
        return self.accelerator == "cpu" or (self.accelerator == "auto" and resolve_device("auto") == "cpu")

    @property
    def processes(self) -> int:
        """Of all nodes."""
        return self.devices * self.num_nodes

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of an optimizer step over all processes."""
        return self.accumulate * self.processes


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the experiments of every task have in common.

    Args:
        about: one line for the table of experiments.
        seed: of the weights, the order of the data, and every mask.
        world: the made-up world, whose clips are made before training where asked for.
    """

    about: str = ""
    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    world: WorldClipsConfig = field(default_factory=WorldClipsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: CallbackConfig = field(default_factory=CallbackConfig)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(RunSettings):
    """A Lumos-1 model: everything a run depends on.

    Args:
        init_from: a run's checkpoint, or a folder in the released layout, to take the weights from.
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
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipFormat = field(default_factory=ClipFormat)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class TokenizerExperimentConfig(RunSettings):
    """A visual tokenizer of our own: everything a run depends on.

    Args:
        tokenizer: its shape.
        loss: what its reconstructions are asked for.
        data: the videos.
    """

    task: Literal["tokenizer"] = "tokenizer"
    tokenizer: FsqConfig = field(default_factory=FsqConfig)
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    data: PixelDataConfig = field(default_factory=PixelDataConfig)


Config = ExperimentConfig | TokenizerExperimentConfig
Settings = TypeVar("Settings")
TASKS: dict[str, type[Config]] = {"lumos": ExperimentConfig, "tokenizer": TokenizerExperimentConfig}


def experiment_names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load_experiment(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of an experiment with `key=value` overrides.

    Args:
        name: of a file of this folder, or the path of one that ends in .yaml.

    Raises:
        ConfigError: unknown experiment or key (the nearest is named), or a value that does not fit.
    """
    files = list(_with_bases(_experiment_file(name)))
    contents = {file: read_yaml(file) for file in reversed(files)}
    schema = _schema(files[0], *contents.values())
    merged = OmegaConf.structured(schema)
    for file, content in contents.items():
        merged = _merge(schema, merged, content, source=str(file))
    return _finish(schema, merged, overrides)


def read_config(file: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run wrote down, with overrides."""
    content = cast(dict[str, Any], OmegaConf.to_container(read_yaml(file)))
    return saved_config(content, file, overrides)


def saved_config(content: Mapping[str, Any], file: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a checkpoint holds, with overrides.

    Args:
        content: as `plain` gave it; what it lacks has its default.
        file: the checkpoint, for messages.
    """
    try:
        restored = OmegaConf.create(in_current_keys(content))
    except OmegaConfBaseException as error:
        raise ConfigError("not a configuration", file=file, where=_first_line(error)) from None
    schema = _schema(file, restored)
    return _finish(schema, _merge(schema, OmegaConf.structured(schema), restored, source=str(file)), overrides)


def with_overrides(settings: Settings, overrides: Sequence[str]) -> Settings:
    """The same settings with `key=value` changes.

    Raises:
        ConfigError: unknown key (the nearest is named), or a value that does not fit.
    """
    return _finish(type(settings), OmegaConf.structured(settings), overrides)


def _schema(file: Path, *contents: DictConfig) -> type[Config]:
    """The task's settings; a task set later wins."""
    task = next((content[TASK] for content in reversed(contents) if TASK in content), "lumos")
    if task not in TASKS:
        raise ConfigError("unknown task", file=file, where=TASK, got=task, expected=" or ".join(TASKS))
    return TASKS[task]


def plain(config: Config) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, for files and checkpoints."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


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


def _with_bases(file: Path) -> Iterator[Path]:
    """The file, the one it is based on, and so on."""
    seen = []
    while file not in seen:
        seen.append(file)
        yield file
        base = read_yaml(file).get(BASE)
        if base is None:
            return
        file = _experiment_file(str(base))
    raise ConfigError("experiments are based on each other", file=file)


def read_yaml(file: Path) -> DictConfig:
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        raise ConfigError("no such file", file=file) from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError("not YAML", file=file, where=" ".join(str(error).split())) from None
    if not isinstance(content, DictConfig):
        raise ConfigError("not a mapping of keys to values", file=file)
    return content


def _finish(schema: type[Settings], merged: DictConfig, overrides: Sequence[str]) -> Settings:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError("not an override", got=repr(override), expected="key=value")
        try:
            parsed = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError("value cannot be read", where=key, got=" ".join(str(error).split())) from None
        merged = _merge(schema, merged, parsed, source="command line")
    try:
        return cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError("configuration does not resolve", where=_first_line(error)) from None


def _merge(schema: type, merged: DictConfig, changes: DictConfig, *, source: str) -> DictConfig:
    changes = OmegaConf.masked_copy(changes, [str(key) for key in changes if key != BASE])
    known = set(_keys(schema))
    if unknown := [key for key in _changed_keys(changes) if key not in known]:
        renamed = [key for key in unknown if current_key(key) in known]
        key = renamed[-1] if renamed else unknown[0]  # the last one is no section
        near = _nearest(key, known)
        raise ConfigError("unknown key", file=source, got=key, fix=f"did you mean {near}?" if near else None)
    try:
        return cast(DictConfig, OmegaConf.merge(merged, changes))
    except ConfigKeyError as error:
        raise ConfigError("unknown key", file=source, got=error.full_key or _first_line(error)) from None
    except OmegaConfBaseException as error:
        raise ConfigError("value does not fit", file=source, where=error.full_key, got=_first_line(error)) from None


def _nearest(key: str, known: set[str]) -> str | None:
    """The key that was meant: its spelling of today, the one that ends so, or what looks most like it."""
    endings = [name for name in known if name.endswith(f".{key}")]
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    candidates = [current_key(key), *(endings if len(endings) == 1 else []), *alike]
    return next((name for name in candidates if name in known), None)


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, sections included."""
    for item in fields(schema):
        yield prefix + item.name
        default = item.default_factory() if callable(item.default_factory) else item.default
        if is_dataclass(default) and not isinstance(default, type):
            yield from _keys(type(default), f"{prefix}{item.name}.")


def _changed_keys(changes: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in changes:
        yield f"{prefix}{key!s}"
        value = changes._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            yield from _changed_keys(value, f"{prefix}{key!s}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
