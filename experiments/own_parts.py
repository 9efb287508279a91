"""Parts of one's own: what a configuration names by a dotted word, out of files that do not belong to the project.

    mask: {kind: own_masks.checkerboard}                        an attribute of own_masks.py beside the YAML
    loggers: [{class_path: own_loggers.Shout, init_args: {}}]   a class of own_loggers.py, called when the run begins

Files are imported for words of the user's own YAML files and command line only. A run's folder, a checkpoint or an
exported config.json may come from anybody: what they name is looked up among what is registered already, and
`lumos resume` imports it where `--allow-imports` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from experiments.merging import sections
from experiments.user_files import search_in, user_folders
from lumos_pl.errors import ConfigError, LumosError, did_you_mean
from lumos_pl.masking import SCHEDULES
from lumos_pl.models.mm_rope import ROPE_KINDS, RopeKind
from lumos_pl.settings.kinds import REGISTRY, ClassPath

CLASS_PATH, INIT_ARGS = "class_path", "init_args"
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

# -- what a configuration names ------------------------------------------------------------------


def named_kinds(
    schema: type, content: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, MutableMapping[str, Any]]]:
    """Every dotted word for a kind: its key, the word, and the registry that it is looked up in."""
    for item in fields(schema):
        value = content.get(item.name)
        if REGISTRY in item.metadata and isinstance(value, str) and DOTTED.fullmatch(value):
            yield prefix + item.name, value, item.metadata[REGISTRY]
        elif isinstance(value, Mapping) and (section := sections(schema)[item.name]) is not None:
            yield from named_kinds(section, value, f"{prefix}{item.name}.")


def class_paths(content: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every class path, wherever it stands, with its key."""
    if isinstance(content, Mapping):
        if isinstance(path := content.get(CLASS_PATH), str):
            yield prefix, path
        for key, value in content.items():
            yield from class_paths(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from class_paths(value, f"{prefix}[{i}]")


def named_parts(schema: type, content: Mapping[str, Any]) -> set[str]:
    """The dotted names of all parts that a configuration would have imported."""
    return {word for _, word, _ in named_kinds(schema, content)} | {path for _, path in class_paths(content)}


def refuse_imports(parts: Collection[str], file: Path) -> None:
    """Raise ConfigError, with the list, if a file that may come from anybody names parts to import."""
    if parts:
        raise ConfigError(
            "the run has parts of its own, which are Python to execute",
            file=file,
            got=", ".join(sorted(parts)),
            fix="if you know where it comes from, add --allow-imports, or --imports-from DIR",
        )


# -- importing -----------------------------------------------------------------------------------


def import_kinds(schema: type, content: Mapping[str, Any]) -> None:
    """Enter the kinds that the user names in their registries, under these names."""
    for key, word, known in named_kinds(schema, content):
        if word not in known:
            known[word] = import_attribute(word, key)


def import_for_sampling(names: Sequence[str]) -> None:
    """Enter RoPE kinds and schedules, which a model is sampled with, that the user names on the command line."""
    for name in names:
        part = import_attribute(name, "--import")
        if isinstance(part, RopeKind):
            ROPE_KINDS[name] = part
        elif callable(part):
            SCHEDULES[name] = part
        else:
            got = f"{name}, {type(part).__name__}"
            raise ConfigError("not a part of a model", where="--import", got=got, expected="a RopeKind or a schedule")


def import_attribute(name: str, where: str) -> Any:
    """What a dotted name stands for: MODULE.ATTRIBUTE, the module a file beside the YAML if there is one.

    Raises:
        ConfigError: there is no such file or attribute, or the file cannot be executed.
    """
    if not DOTTED.fullmatch(name):
        raise ConfigError("not a dotted name", where=where, got=repr(name), expected="FILE.NAME, of a FILE.py")
    module_name, _, attribute = name.rpartition(".")
    module = _import_module(module_name, where)
    if not hasattr(module, attribute):
        fix = did_you_mean(attribute, dir(module))
        raise ConfigError("no such name in it", file=module.__file__, where=where, got=attribute, fix=fix)
    return getattr(module, attribute)


def _import_module(name: str, where: str) -> ModuleType:
    # A package that is there keeps its name: no file of the working directory stands for a part of Lightning.
    of_package = "." in name and name.partition(".")[0] in sys.modules
    folders = [] if of_package else [*user_folders, Path.cwd()]
    files = {folder: folder.joinpath(*name.split(".")).with_suffix(".py") for folder in folders}
    folder, file = next(((folder, file) for folder, file in files.items() if file.is_file()), (None, None))
    there = sys.modules.get(name)
    if file is not None and there is not None and Path(there.__file__ or "").resolve() != file.resolve():
        raise ConfigError("another module has this name already", file=file, where=where, fix="rename the file")
    if there is not None:
        return there
    if folder is not None:
        search_in([folder])  # a word of the command line may stand for a file of the working directory
    try:
        return importlib.import_module(name) if file is None else _execute(name, file)
    except LumosError:
        raise
    except Exception as error:
        if file is None and isinstance(error, ModuleNotFoundError) and name.startswith(error.name or " "):
            looked = " and ".join(dict.fromkeys(map(str, folders))) or name.partition(".")[0]
            fix = f"put {name}.py beside your YAML (of a resume: --imports-from DIR); looked in {looked}"
            raise ConfigError("no such module", where=where, got=name, fix=fix) from error
        said = f"{type(error).__name__}: {error}"
        raise ConfigError("cannot be imported", file=file or name, where=where, got=said) from error


def _execute(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# -- classes -------------------------------------------------------------------------------------


def import_class(part: ClassPath, base: type[Any], where: str) -> type[Any]:
    """The class of a class path, not called.

    Raises:
        ConfigError: it is not there, or no `base`.
    """
    found = import_attribute(part.class_path, where)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            "a class of another kind", where=where, got=part.class_path, expected=f"a subclass of {base.__qualname__}"
        )
    return found


def build_part(part: ClassPath, base: type[Any], where: str, *, package: str | None = None, **defaults: Any) -> Any:
    """An instance of a class path.

    Args:
        package: what to install where a package is missing; default: what the error says.
        defaults: arguments that `init_args` does not give, if the class takes them.
    Raises:
        ConfigError: as `import_class`, or its arguments do not fit.
    """
    made = import_class(part, base, where)
    try:
        taken = inspect.signature(made).parameters
    except ValueError:  # it does not say
        taken = MappingProxyType({})
    try:
        return made(**{name: value for name, value in defaults.items() if name in taken} | part.init_args)
    except LumosError:
        raise
    except ModuleNotFoundError as error:
        missing = package or _package_of(error)
        raise ConfigError(
            "a package is missing", where=where, got=part.class_path, fix=f"pip install {missing}"
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError("cannot be made with these init_args", where=where, got=said) from error


def _package_of(error: ModuleNotFoundError) -> str:
    """What to install: Lightning says it in the error's words."""
    hint = re.search(r"pip install -U '?([A-Za-z0-9_-]+)", str(error))
    return error.name or (hint[1] if hint else "what it stands on")
