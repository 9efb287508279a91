"""Parts of a list, each tokenized by itself: which items are whose, and how far all of them are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.manifest import MANIFEST_FILE, is_folder
from data_modules.shards.places import Place, RemotePath, is_there, read_whole
from data_modules.shards.writer import KIND_FOLDERS
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import MOST_BYTES

STATE_FILE = "tokenize.json"
MOST_PARTS = 99_999
PART_FOLDER = re.compile(r"part-([0-9]{5})-of-([0-9]{5})")
SLURM = "slurm"
_ID, _COUNT, _LEAST, _STEP = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "STEP"))


@dataclass(frozen=True, kw_only=True)
class Part:
    """The items whose keys a hash gives to part `index` of `count`, wherever and in whatever order they are listed.

    Args:
        index: from 0.
        count: of all parts.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Self:
        """`i/n`, i from 0 to n - 1; or `slurm`: of an array of n tasks, this one.

        Raises:
            ConfigError: neither.
        """
        if text == SLURM:
            return cls._of_array(environment)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match and int(match[1]) < int(match[2]) <= MOST_PARTS:
            return cls(index=int(match[1]), count=int(match[2]))
        expected = f"i/n, as 0/4 to 3/4, at most {MOST_PARTS} parts; or {SLURM}"
        raise ConfigError("no part", where="--part", got=repr(text), expected=expected)

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Self:
        """The tasks of an array are the parts in order: the lowest one is part 0, whatever number it has."""
        try:
            task, count, least = (int(environment[name]) for name in (_ID, _COUNT, _LEAST))
            step = int(environment.get(_STEP) or 1)
        except (KeyError, ValueError):
            fix = "start it by `sbatch --array=0-3`, or give --part i/n"
            raise ConfigError("not a task of a SLURM array", where=f"--part {SLURM}", fix=fix) from None
        index, rest = divmod(task - least, max(1, step))
        if rest or not 0 <= index < count <= MOST_PARTS:
            got = f"task {task} of {count} from {least} on"
            fix = "number the tasks without gaps, as `sbatch --array=0-3`; for some of the parts give --part i/n"
            raise ConfigError("a SLURM array with gaps", where=f"--part {SLURM}", got=got, fix=fix)
        return cls(index=index, count=count)

    @property
    def folder(self) -> str:
        """Of its shards, in the folder of all."""
        return f"part-{self.index:05d}-of-{self.count:05d}"

    def holds(self, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which items are this part's, by `MediaItem.number`; shape [N]."""
        mine: NDArray[np.bool_] = numbers % np.uint64(self.count) == np.uint64(self.index)
        return mine


def part_folders(root: Place) -> list[Place]:
    """The folders of a root's parts that hold samples, in order; none where it has no parts.

    Raises:
        DataError: a part is missing or not finished, or there are those of two divisions.
        TemporaryError: a store does not say.
    """
    found = _names_of_parts(root)
    counts = sorted({name[-5:] for name in found})
    if len(counts) > 1:
        got, fix = f"parts of {' and of '.join(str(int(n)) for n in counts)}", "move those away that are not wanted"
        raise DataError("parts of two divisions", file=root, got=got, fix=fix)
    names = [Part(index=index, count=int(n)).folder for n in counts for index in range(int(n))]
    for index, name in enumerate(names):
        if not _is_whole(root / name):
            fix = f"`lumos tokenize ... --part {index}/{len(names)}` finishes it, and --status shows how far all are"
            raise DataError("a part is not finished", file=root / name, fix=fix)
    return [root / name for name in names if any(is_folder(root / name / kind) for kind in KIND_FOLDERS)]


def _names_of_parts(root: Place) -> list[str]:
    if isinstance(root, RemotePath):
        if any(is_folder(folder) for folder in (root, *(root / kind for kind in KIND_FOLDERS))):
            return []  # whose listing may be long
        return sorted(name for name in root.names() or () if PART_FOLDER.fullmatch(name))
    try:
        with os.scandir(root) as items:
            return sorted(item.name for item in items if PART_FOLDER.fullmatch(item.name) and item.is_dir())
    except OSError:
        return []  # who opens it says why


def _is_whole(part: Place) -> bool:
    """Whether all of a part is done; without what tokenizing wrote down there, whether it has a manifest."""
    state = part / STATE_FILE
    if is_there(state):
        with located(state):
            return parse_json(read_whole(state, at_most=MOST_BYTES), dict[str, Any]).get("complete") is not None
    return any(is_there(part / kind / MANIFEST_FILE) for kind in KIND_FOLDERS)


WHOLE = Part(index=0, count=1)
