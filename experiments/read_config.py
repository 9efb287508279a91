"""One experiment's configuration: defaults, then experiments/EXP.yaml, then key=value from the command line.

Or as a run or a checkpoint holds it, with what the command line changes. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from experiments.config import Config, schema_of, with_local_places
from experiments.merging import (
    as_it_stands,
    build,
    changed_by,
    check_interpolations,
    defaults,
    merge,
    merge_overrides,
    resolved,
)
from experiments.own_parts import import_kinds, named_kinds, named_parts, refuse_imports
from experiments.user_files import search_beside
from experiments.yaml_text import read_yaml_file
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.checkpoints.named import with_found_places
from lumos_pl.checkpoints.opening import CONFIG_CHECKS
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.settings.idle import refuse_idle
from lumos_pl.settings.plain import to_plain
from lumos_pl.tokenizers.load import refuse_code

FOLDER = Path(__file__).parent
BASE = "base"  # in a YAML of the user's: the experiment it starts from
Settings = TypeVar("Settings")


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
    schema = schema_of(next(iter(files)), *reversed(files.values()))
    settings = defaults(schema)
    for file, content in reversed(files.items()):
        check_interpolations(content, file)
        settings = merge(schema, settings, content, source=file)
    values = resolved(schema, merge_overrides(schema, settings, overrides))
    search_beside(file for file in files if file.parent != FOLDER)
    import_kinds(schema, values)
    config = build(schema, values)
    with_local_places(config)
    refuse_idle(config, changed_by(overrides))
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
    return with_local_places(config)


def _saved(
    content: Mapping[str, Any], file: Path, overrides: Sequence[str], without: Sequence[str] = ()
) -> tuple[type[Config], dict[str, Any]]:
    current = as_it_stands(in_current_keys(content))
    restored = {key: value for key, value in current.items() if key not in without}
    schema = schema_of(file, restored)
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
    schema = schema_of(file, current)
    if "run" not in current:
        current = {name: current[name] for name in current.keys() & {item.name for item in fields(schema)}}
    for key, word, known in list(named_kinds(schema, current)):
        if word not in known:
            *sections, name = key.split(".")
            del reduce(operator.getitem, sections, current)[name]
    saved_config(current, file)


CONFIG_CHECKS.append(check_saved_config)


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
