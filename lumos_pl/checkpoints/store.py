"""A folder in an object store, by fsspec: which store a URL means, and with which rights, is fsspec's business."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lumos_pl.errors import ConfigError, LumosError, TemporaryError, did_you_mean
from lumos_pl.machinery.retrying import RetryConfig, retried

T = TypeVar("T")
SETTING = "checkpoint.upload"

_PACKAGES = {"s3fs": "s3", "gcsfs": "gs"}  # our extras that bring them
_SECRETS = re.compile(r"(?<=//)[^/\s@]+@|\?[^\s'\"]+")  # of a URL: who asks, and what signs for it
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, LumosError, ImportError)


def masked(text: object) -> str:
    """A text in one line and without what a URL in it may say of rights."""
    return " ".join(_SECRETS.sub("...", str(text)).split())[:300]


def check_url(url: str, where: str = SETTING) -> None:
    """Raise ConfigError unless this can be the URL of a folder in an object store; nothing is asked of it yet.

    Args:
        where: the setting that it stands in.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if not (parts.scheme and "://" in url and (parts.netloc or parts.path.strip("/"))) or not url.isprintable():
        expected = "a URL, s3://bucket/folder for one"
        raise ConfigError("not the URL of a folder", where=where, got=repr(masked(url)), expected=expected)
    if "@" in parts.netloc or parts.query or parts.fragment:
        fix = "leave the rights to the environment, as the store's own tools do"
        raise ConfigError("a URL with rights in it would stand in files", where=where, got=masked(url), fix=fix)


def passes(error: BaseException) -> bool:
    """Whether a store may answer otherwise soon: unless it said that something is not there, or not allowed."""
    return isinstance(error, Exception) and not isinstance(error, _FINAL)


class Store:
    """
    Args:
        url: of a folder.
        retry: how long an operation may fail.
    Raises:
        ConfigError: no such kind of store is known here.
    """

    def __init__(self, url: str, retry: RetryConfig) -> None:
        check_url(url)
        self.url, self.retry = url.rstrip("/"), retry
        self._fs, self._root = _open(self.url)

    def read(self, name: str) -> bytes | None:
        """What an object holds; None: there is none."""
        try:
            return self._again(lambda: bytes(self._fs.cat_file(self._at(name))), f"read {name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Give a name its content at once: in an object store it is so, elsewhere a file comes from beside it."""
        self._make_room(name)
        place = self._at(name)

        def put() -> None:
            if self._is_object_store:
                self._fs.pipe_file(place, data)
                return
            self._fs.pipe_file(f"{place}.partial", data)
            self._fs.mv(f"{place}.partial", place)

        self._again(put, f"write {name}")

    def send(self, file: Path, name: str) -> None:
        """Copy a file there.

        Raises:
            OSError: it has not arrived whole.
        """
        self._make_room(name)

        def put() -> None:
            self._fs.put_file(str(file), self._at(name))
            self._fs.invalidate_cache()
            if (got := self._fs.info(self._at(name))["size"]) != (expected := file.stat().st_size):
                raise OSError(f"{got} of {expected} bytes have arrived")

        self._again(put, f"send {name}")

    def fetch(self, name: str, file: Path) -> None:
        """Copy an object to a file that is not there, or of an attempt before."""

        def get() -> None:
            file.unlink(missing_ok=True)
            self._fs.get_file(self._at(name), str(file))

        self._again(get, f"fetch {name}")

    def size(self, name: str) -> int | None:
        """Bytes of an object; None: there is none."""
        try:
            return int(self._again(lambda: self._fs.info(self._at(name))["size"], f"look at {name}"))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Of all that lies in a folder, not deeper; none if there is no such folder."""

        def look() -> list[str]:
            self._fs.invalidate_cache()
            try:
                return [Path(path).name for path in self._fs.ls(self._at(folder), detail=False)]
            except FileNotFoundError:
                return []

        return self._again(look, f"look into {folder}")

    def remove(self, name: str) -> None:
        def rm() -> None:
            try:
                self._fs.rm_file(self._at(name))
            except FileNotFoundError:
                return

        self._again(rm, f"remove {name}")

    def failure(self, error: BaseException, what: str) -> LumosError:
        """The line for what the store answered at last."""
        fix = "see that it answers, then run the same command again"
        if isinstance(error, FileNotFoundError | PermissionError):
            fix = "see that the bucket exists, and that the environment gives the rights to read and write there"
            return ConfigError(what, where=SETTING, got=masked(error), file=self.url, fix=fix)
        return TemporaryError(what, where=SETTING, got=masked(error) or type(error).__name__, file=self.url, fix=fix)

    @property
    def _is_object_store(self) -> bool:
        return bool(getattr(self._fs, "async_impl", False))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_room(self, name: str) -> None:
        """Make a name's folder where folders are more than parts of names; in other stores that would make a bucket."""
        if not self._is_object_store:
            parent = self._at(name).rsplit("/", 1)[0]
            self._again(lambda: self._fs.makedirs(parent, exist_ok=True), f"make the folder of {name}")

    def _again(self, work: Callable[[], T], what: str) -> T:
        def told() -> T:  # the log says what the error says
            try:
                return work()
            except Exception as error:
                if passes(error) and masked(error) != str(error):
                    raise OSError(masked(error)) from None
                raise

        return retried(told, self.retry, f"{what} at {self.url}", passing=passes)


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols, get_filesystem_class, known_implementations

    protocol = urlsplit(url).scheme
    if protocol not in available_protocols():
        fix = did_you_mean(protocol, available_protocols())
        raise ConfigError("no such kind of store", where=SETTING, got=repr(protocol), fix=fix)
    package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
    if importlib.util.find_spec(package) is None:
        fix = f"pip install 'lumos_pl[{_PACKAGES[package]}]'" if package in _PACKAGES else f"pip install {package}"
        raise ConfigError("the package for this store is missing", where=SETTING, got=package, fix=fix)
    get_filesystem_class(protocol)
    fs, root = url_to_fs(url)
    return fs, str(root).rstrip("/")
