"""Where the user's own Python files lie: beside their YAML files, or where they work."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))

user_folders: list[Path] = []  # of the user's YAML files, and of what is named on the command line


def search_beside(files: Iterable[Path]) -> None:
    """Look for Python files beside these YAML files from now on, all of which are the user's."""
    search_in(file.parent for file in files)


def search_in(folders: Iterable[Path]) -> None:
    """Look for Python files in these folders from now on, all of which are the user's."""
    for folder in (folder.resolve() for folder in folders):
        if folder not in user_folders:
            user_folders.append(folder)
            sys.path.append(str(folder))  # for data workers, which import anew; last: it hides nothing


def users_own(file: Path) -> Path | None:
    """A Python file as the user would name it, from where they work if it lies there; None: it is not theirs."""
    installed = any(file.is_relative_to(folder) for folder in INSTALLED)
    if installed or not any(file.is_relative_to(folder) for folder in user_folders):
        return None
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
