"""Where shards lie: a folder of this machine, or one of a store that a URL names.

    place_of("data/videos")                    Path
    place_of("s3://bucket/data/videos")        RemotePath, from which files come into the cache of this machine

Whoever reads shards takes either, and asks the functions here for what differs.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.content_cache import ContentCache, OtherContentError, default_folder
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.machinery.retrying import RetryConfig, is_full, retried
from lumos_pl.machinery.store import STALL_S, Store, StoreTrouble, check_url, is_url, opened
from lumos_pl.settings.places import check_local
from lumos_pl.settings.ranges import between

T = TypeVar("T")

FEWEST_ATTEMPTS = 4  # at what a store gives, where it is not what it should be
_MOST_TWICE = 64 << 20  # bytes that are read twice: what is larger takes long

_REFUSED = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_RIGHTS_FIX = "see that it exists, and that the environment gives the rights to read there, which may have expired"
_NAME_FIX = "see that the bucket and the name are right: where shards lie there is a manifest.json"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZES = between(1 << 20, 1 << 60)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What this machine keeps of shards that lie elsewhere; all ranks, workers and runs of the machine share it.

    Args:
        dir: a folder on a disk of this machine; null: `$XDG_CACHE_HOME`, or `~/.cache`. The files lie in its
            `lumos-cache`, and may be removed at any time.
        max_bytes: of all files there together, also of those that are just coming: a number, or one with a unit, such
            as `500GB`. What was used least recently goes first.
    """

    dir: str | None = None
    max_bytes: int | str = "32GB"

    def check(self, where: str) -> None:
        n_bytes(self.max_bytes, f"{where}.max_bytes")

    def opened(self, where: str = "data.cache") -> ContentCache:
        folder = Path(self.dir).expanduser() if self.dir else default_folder()
        return ContentCache(folder.absolute(), n_bytes(self.max_bytes, f"{where}.max_bytes"), where)


def n_bytes(size: int | str, where: str) -> int:
    """The number that a size with a unit stands for, `100GB` or `64MiB` for one.

    Raises:
        ConfigError: it is none, or is out of range.
    """
    said = str(size).strip().upper()
    digits = said.rstrip("BIKMGT").rstrip()
    unit = said[len(digits) :].strip()
    try:
        number = float(digits) * _UNITS[unit]
    except (KeyError, ValueError):
        expected = "a number of bytes, or one with a unit: 100GB, 512MiB"
        raise ConfigError("not a size", where=where, got=repr(size), expected=expected) from None
    _SIZES.check(where, number)
    return int(number)


@dataclass(frozen=True, kw_only=True)
class Access:
    """How files of a store are read.

    Args:
        cache: where those stay that came; None: nowhere, each read asks the store.
        where: the setting or flag that names the store.
        stall_s: seconds without a byte after which a request has failed.
        retry: of small requests; shards are tried again by who reads them.
    """

    cache: ContentCache | None = None
    where: str = "data.root"
    stall_s: float = STALL_S
    retry: RetryConfig = field(default_factory=RetryConfig)


@dataclass(frozen=True)
class RemotePath:
    """A folder or a file in a store, with as much of `Path` as those need who only read there.

    Args:
        url: its name, without rights in it.
    """

    url: str
    access: Access = field(default_factory=Access, compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> RemotePath:
        name = Path(name).as_posix()
        return self if name == "." else replace(self, url=f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return replace(self, url=self.url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is such a file; one of a folder in which nothing may be looked at is not known to be.

        Raises:
            TemporaryError: the store does not say.
        """
        try:
            return self._patiently(lambda: self._store.has(self.name))
        except PermissionError:
            return False

    @property
    def _store(self) -> Store:
        return self._opened(self.parent.url)

    def _opened(self, url: str) -> Store:
        return opened(url, self.access.where, stall_s=self.access.stall_s)

    def _patiently(self, work: Callable[[], T]) -> T:
        """What a small request gives.

        Raises:
            TemporaryError: the store is in trouble for longer than it is tried.
        """
        retry = self.access.retry
        try:
            return retried(work, retry, f"look at {self}")
        except StoreTrouble as trouble:
            got, full = f"{trouble}, {retry.attempts} times", is_full(trouble)
        what, fix = "the storage does not answer as it should", "start again when it does"
        if full:
            what, fix = "no room on the disk of this machine", f"free space in {tempfile.gettempdir()}"
        raise TemporaryError(what, file=self, got=got, fix=fix)  # here: what it is raised amid would be tried once more

    # -- files ---------------------------------------------------------------------------------

    def names(self) -> frozenset[str] | None:
        """Of all files in this folder; None: the store does not tell."""
        store = self._opened(self.url)
        try:
            return self._patiently(lambda: frozenset(store.names(""))) if store.can_list else None
        except PermissionError:  # to read is one right, to list another
            return None

    def matching(self) -> list[RemotePath]:
        """All folders that this pattern stands for, in the order of their names.

        Raises:
            ConfigError: the store does not tell what there is.
            DataError: it does not exist, or may not be looked at.
        """
        store = self._opened(re.split(r"/[^/]*[*?\[]", self.url)[0])
        if not store.can_list:
            fix = "name each folder: a web server does not tell what it has"
            raise ConfigError("a pattern of web addresses", where=self.access.where, got=self.url, fix=fix)
        try:
            return [replace(self, url=url) for url in self._patiently(lambda: store.matching(self.url))]
        except _REFUSED as error:
            raise self._refused(error) from error

    def read(self, at_most: int) -> tuple[bytes, int]:
        """As `fetched`, tried again as `access.retry` says."""
        return self._patiently(lambda: self.fetched(at_most))

    def fetched(self, at_most: int) -> tuple[bytes, int]:
        """The beginning of this file, straight from the store, and how many bytes came; more than asked for: too many.

        Raises:
            DataError: it is not there, or may not be read.
            StoreTrouble: what may pass.
        """
        with tempfile.TemporaryDirectory(prefix="lumos-fetch-") as folder:
            file = Path(folder) / "file"
            self._fetch(at_most, file)
            with file.open("rb") as stream:
                return stream.read(at_most), file.stat().st_size

    def brought(self, sha256: str, size: int, *, anew: bool = False) -> BufferedReader:
        """This file as the cache has it, open for reading; while it is open it stays there.

        Args:
            sha256, size: of its content, which are verified as it comes.
            anew: what the cache has of it is not what it was, and is dropped.
        Raises:
            OtherContentError: what came is not it.
            DataError, StoreTrouble: as `fetched`.
            ConfigError, TemporaryError: see `ContentCache.bring`.
        """
        cache = self.access.cache
        assert cache is not None
        if anew:
            cache.drop(sha256)
        return cache.bring(sha256, size, partial(self._fetch, size))

    def read_checked_once(self, sha256: str, size: int, *, anew: bool) -> tuple[bytes, int]:
        """As `fetched`, through the cache if there is one."""
        if self.access.cache is None:
            return self.fetched(size)
        try:
            with self.brought(sha256, size, anew=anew) as file:
                return file.read(), os.fstat(file.fileno()).st_size
        except OtherContentError as other:
            return other.data[:size], len(other.data)

    def _fetch(self, at_most: int, file: Path) -> None:
        try:
            self._store.fetch(self.name, file, at_most=at_most)
        except _REFUSED as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DataError:
        if isinstance(error, PermissionError):
            return DataError("may not be read", file=self, got=error, fix=_RIGHTS_FIX)
        return DataError("no such file in the store", file=self, fix=_NAME_FIX)


Place = Path | RemotePath


def place_of(root: str, access: Access | None = None) -> Place:
    """What a root names.

    Args:
        access: of a URL.
    Raises:
        ConfigError: a URL with rights in it, or none of a folder.
    """
    check_root(root, (access or Access()).where)
    if not is_url(root):
        return Path(url2pathname(urlsplit(root).path)) if root.startswith(("file://", "local://")) else Path(root)
    return RemotePath(root.rstrip("/"), access or Access())


def check_root(root: str | None, where: str) -> None:
    """Raise ConfigError for a URL that may not stand in files, or is one but for a slash."""
    if root is not None and is_url(root):
        check_url(root, where)
    elif root is not None and "://" not in root:
        check_local(where, root, fix="a URL has two slashes: s3://bucket/folder")


def read_whole(place: Place, *, at_most: int) -> bytes:
    """A small file, such as a manifest, which no digest is known of: in a store it is what it is said to be twice.

    Raises:
        DataError: it is not there, cannot be read, or is too large.
        TemporaryError: the store does not answer, or says something else each time.
    """
    if isinstance(place, Path):
        return read_regular(place, at_most=at_most)
    said = set[bytes]()
    for _ in range(2 * FEWEST_ATTEMPTS):
        data, size = place.read(at_most)
        if size > at_most:
            raise DataError("file too large", file=place, got=f"more than {at_most} bytes")
        if data in said or size > _MOST_TWICE:
            return data
        said.add(data)
    what, fix = "the storage does not answer as it should", "start again when it does"
    raise TemporaryError(what, file=place, got="something else each time", fix=fix)


def local_file(place: Place, sha256: str, size: int) -> Path:
    """A file that is mapped into memory: itself, or as the cache has it, where it stays as long as this process lives.

    Raises:
        DataError: what came is not it, or it is not there.
        TemporaryError: the store does not answer.
        ConfigError: see `RemotePath.brought`.
    """
    if isinstance(place, Path):
        return place
    cache = place.access.cache or CacheConfig().opened()
    place = replace(place, access=replace(place.access, cache=cache))
    for attempt in range(FEWEST_ATTEMPTS):
        try:
            file = place._patiently(partial(place.brought, sha256, size, anew=attempt > 0))
        except OtherContentError as other:
            got = f"{len(other.data)} bytes, sha256 {hashlib.sha256(other.data).hexdigest()}"
            continue
        if hashlib.file_digest(file, "sha256").hexdigest() == sha256:  # it was whole when it came
            _HELD.append(file)
            return cache.file(sha256)
        file.close()
        got = "damaged on this machine's disk"
    raise DataError("file with other content", file=place, got=got, expected=f"{size} bytes, sha256 {sha256}")


_HELD: list[BufferedReader] = []


def names_in(folder: Place) -> frozenset[str] | None:
    """The files of a folder, by one listing: asking for each of many thousand is slow; None: it cannot be listed."""
    if isinstance(folder, RemotePath):
        return folder.names()
    with os.scandir(folder) as items:
        return frozenset(item.name for item in items if item.is_file())


def is_there(file: Place) -> bool:
    """Whether there is such a file now; where the storage does not say, there is none now."""
    if isinstance(file, Path):
        return os.path.isfile(file)  # noqa: PTH113 (Path.is_file may raise EIO)
    try:
        return file.exists()
    except TemporaryError:
        return False
