"""A folder of shards that was written here, put into a store: shards first, what vouches for them last.

What was put is noted in the folder, so that the same command goes on after an interruption, and nothing of another's
is ever replaced there. Before the work a store's folder is claimed: an object in it says of what its shards will be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_modules.shards.manifest import MANIFEST_FILE
from data_modules.shards.places import RemotePath
from data_modules.shards.writer import KIND_FOLDERS
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import make_folder
from lumos_pl.machinery.content_cache import default_folder
from lumos_pl.machinery.own_files import append, digest_of
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import Store

NOTES = ".put.jsonl"
PROBE = ".lumos-probe"  # put and removed before the work, to see that it can be
CLAIM = ".lumos-begun.json"  # put before the work, and left there
_VOUCHING = (MANIFEST_FILE, "tokenize.json")  # in the order in which they come, after all else


def scratch_of(place: RemotePath) -> Path:
    """Where what is to lie in a store is written first: the same for every command with this URL on this machine.

    Raises:
        ConfigError, TemporaryError: the store does not take it as far as can be seen before the work.
    """
    store = Store(place.url, RetryConfig(), where=place.access.where)
    if not store.can_list:
        fix = "write into a folder, and copy it to where the server has it from"
        raise ConfigError("nothing can be put onto a web server", file=place, where=place.access.where, fix=fix)
    try:
        store.write(PROBE, b"")
        with suppress(PermissionError):  # to write is one right, to remove another, which is not needed
            store.remove(PROBE)
    except (FileNotFoundError, PermissionError, ConnectionError) as error:
        raise store.failure(error, "shards cannot be put there") from error
    return default_folder() / "lumos-scratch" / hashlib.sha256(place.url.encode()).hexdigest()[:16]


def claim(folder: Path, place: RemotePath, settings: dict[str, Any], listed: str | None) -> None:
    """Have a store's folder for the shards of this work, which may have been begun before, here or elsewhere.

    Args:
        folder: where it is written first.
        settings: all that the shards depend on beside the list, as plain JSON values.
        listed: of the list a digest; None: the list does not count.
    Raises:
        DataError: another data set lies there, or was begun there.
        ConfigError, TemporaryError: as `put_folder`.
    """
    store = Store(place.url, RetryConfig(), where=place.access.where)
    content = json.dumps({"settings": settings, "list": listed}, indent=2, sort_keys=True).encode() + b"\n"
    make_folder(folder)
    noted = _noted(folder)
    try:
        there = store.read(CLAIM)
        if there == content:
            return
        if CLAIM not in noted if there is not None else not noted and _shards_lie(store):
            fix = "give another --out, or remove what lies there"
            raise DataError("another data set lies there", file=store.url, fix=fix)
        if there is None or json.loads(there)["settings"] == settings:  # other ones are refused by `folder` itself
            store.write(CLAIM, content)
            _note(folder, CLAIM, f"put {hashlib.sha256(content).hexdigest()}")
    except (FileNotFoundError, PermissionError, ConnectionError) as error:
        raise store.failure(error, "shards cannot be put there") from error


def _shards_lie(store: Store) -> bool:
    return not {*KIND_FOLDERS, *_VOUCHING}.isdisjoint(store.names(""))


def put_folder(folder: Path, place: RemotePath, *, retry: RetryConfig | None = None) -> int:
    """Put all that is complete in a folder into a store, as far as it is not there yet; how many files that were.

    Raises:
        DataError: another's file lies there.
        ConfigError: the store does not exist, or may not be written to.
        TemporaryError: it does not answer; the same command goes on.
    """
    store = Store(place.url, retry or RetryConfig(), where=place.access.where)
    files = sorted(
        _files(folder), key=lambda name: (Path(name).name in _VOUCHING, Path(name).name == _VOUCHING[1], name)
    )
    try:
        done = _noted(folder)
        _check_room(store, folder, files, done)
        n_put = 0
        for name in files:
            digest = digest_of(folder / name)
            if done.get(name) == f"put {digest}":
                continue
            for state in "putting", "put":
                _note(folder, name, f"{state} {digest}")
                if state == "putting":
                    store.send(folder / name, name)
            n_put += 1
        return n_put
    except (FileNotFoundError, PermissionError, ConnectionError) as error:
        raise store.failure(error, "shards cannot be put there") from error


def _files(folder: Path) -> Iterator[str]:
    """Of all that belongs to the result; locks, journals and what begins with a dot do not."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        passing = path.suffix == ".lock" or ".partial" in path.name
        if path.is_file() and not path.is_symlink() and not hidden and not passing:
            yield name.as_posix()


def _check_room(store: Store, folder: Path, files: list[str], done: dict[str, str]) -> None:
    """Raise DataError for a file that lies there and was not put by this folder; the same one counts as put by it."""
    for parent in sorted({Path(name).parent.as_posix() for name in files}):
        inside = "" if parent == "." else parent
        there = set(store.names(inside))
        for name in files:
            if Path(name).parent.as_posix() != parent or Path(name).name not in there or name in done:
                continue
            data, digest = store.read(name), digest_of(folder / name)
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                fix = "give another --out, or remove what lies there"
                raise DataError("another's file lies there", file=f"{store.url}/{name}", fix=fix)
            done[name] = f"put {digest}"
            _note(folder, name, done[name])


def _noted(folder: Path) -> dict[str, str]:
    notes: dict[str, str] = {}
    if (folder / NOTES).is_file():
        with open_regular(folder / NOTES, at_most=None) as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    name, state = json.loads(line)
                    notes[name] = state
    return notes


def _note(folder: Path, name: str, state: str) -> None:
    append(folder / NOTES, json.dumps([name, state]).encode() + b"\n")
