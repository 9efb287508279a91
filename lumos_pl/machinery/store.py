"""A folder in an object store, by fsspec: which store a URL means, and with which rights, is fsspec's business."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lumos_pl.errors import ConfigError, LumosError, TemporaryError, did_you_mean
from lumos_pl.machinery.retrying import RetryConfig, is_full, retried

T = TypeVar("T")

STALL_S = 60.0  # without a byte, after which a request has failed
PIECE_BYTES = 1 << 16  # that may come beyond what is wanted before a transfer is ended

_PACKAGES = {"s3fs": "s3", "gcsfs": "gs", "aiohttp": "http"}  # our extras that bring them, called as what they open
_NEEDS = {"http": "aiohttp", "https": "aiohttp"}  # of what is part of fsspec itself
_SECRETS = re.compile(
    r"(?<=//)[^/\s@]+@"  # of a URL: who asks,
    r"|\?[^\s'\"]+"  # and what signs for it
    r"|(?i:(?<![a-z0-9])(?:x-(?:amz|goog)-[a-z-]+|awsaccesskeyid|(?:access|secret|session)\w*(?:key|token|id)|signature|sig|token|password)"
    r"['\"]?\s*[=:]\s*['\"]?[^\s'\",;&]+)"
)
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, LumosError, ImportError)
_WITHOUT_RIGHTS = {  # how the libraries call it that there are none to ask with
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
    "DefaultCredentialsError",
    "RefreshError",
}


class StoreTrouble(ConnectionError):
    """What a store answered that may pass, in its words without what a URL says of rights."""


def masked(text: object) -> str:
    """A text in one line and without what a URL in it, or the environment, says of rights."""
    said = str(text)
    for name in _SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= 8:
            said = said.replace(secret, "...")
    return " ".join(_SECRETS.sub("...", said).split())[:300]


def is_url(root: str) -> bool:
    """Whether a root is one of a store, and not a path; `file://` is a path in other words."""
    return "://" in root and not root.startswith(("file://", "local://"))


def check_url(url: str, where: str) -> None:
    """Raise ConfigError unless this can be the URL of a folder in an object store; nothing is asked of it yet.

    Args:
        where: the setting that it stands in.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    named = parts.netloc or (parts.scheme not in _PACKAGES.values() | _NEEDS.keys() and parts.path.strip("/"))
    if not (parts.scheme and "://" in url and named) or not url.isprintable():
        expected = "a URL, s3://bucket/folder for one"
        raise ConfigError("not the URL of a folder", where=where, got=repr(masked(url)), expected=expected)
    if "@" in parts.netloc or parts.query or parts.fragment:
        fix = "leave the rights to the environment, as the store's own tools do"
        got = masked(url.partition("#")[0])
        raise ConfigError("a URL with rights in it would stand in files", where=where, got=got, fix=fix)
    if "::" in url:
        fix = "name the store alone: what comes from it is kept on this machine anyway"
        raise ConfigError("a chain of stores", where=where, got=masked(url), fix=fix)


def passes(error: BaseException) -> bool:
    """Whether a store may answer otherwise soon: unless it said that something is not there, or not allowed."""
    return isinstance(error, Exception) and not isinstance(error, _FINAL)


def _told(error: Exception) -> Exception:
    """What a store answered, as one of few kinds, and without what its URL says of rights."""
    if isinstance(error, LumosError | ImportError):
        return error
    said, status = masked(error) or type(error).__name__, getattr(error, "status", None)  # the latter is aiohttp's
    if isinstance(status, int):
        said = f"{status or type(error).__name__} {masked(getattr(error, 'message', '')) or said}"
    if status in (404, 410):
        return FileNotFoundError(said)
    if status in (401, 403) or type(error).__name__ in _WITHOUT_RIGHTS:
        return PermissionError(said)
    for kind in _FINAL[:4]:
        if isinstance(error, kind):
            return kind(said)
    if is_full(error):  # the disk here, and not the store
        return StoreTrouble(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return StoreTrouble(said)


class Store:
    """
    Args:
        url: of a folder.
        retry: how long an operation may fail.
        where: the setting that names the URL, for what is said of it.
        stall_s: seconds without a byte after which a request has failed.
    Raises:
        ConfigError: no such kind of store is known here.
    """

    def __init__(self, url: str, retry: RetryConfig, *, where: str, stall_s: float = STALL_S) -> None:
        check_url(url, where)
        self.url, self.retry, self.where = url.rstrip("/"), retry, where
        self._fs, self._root = _open(self.url, where, stall_s)

    @property
    def can_list(self) -> bool:
        """Whether it tells what there is; a web server need not, and what its pages link to is something else."""
        return not self.url.startswith(("http://", "https://"))

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

    def fetch(self, name: str, file: Path, *, at_most: int | None = None) -> None:
        """Copy an object to a file, over what that holds of an attempt before; the file stays the same one.

        Args:
            at_most: bytes that are wanted. Where more come the transfer ends: the file is longer then, by at least
                one byte and by no more than `PIECE_BYTES`.
        """
        pieces = {} if self.can_list else {"chunk_size": PIECE_BYTES}

        def get() -> None:
            if at_most is None:
                file.unlink(missing_ok=True)
                self._fs.get_file(self._at(name), str(file))
                return
            says_before = self._is_object_store and self.can_list
            try:
                limit = _limit(at_most, says_before=says_before)
                self._fs.get_file(self._at(name), str(file), callback=limit, **pieces)
            except _TooLongError:
                if says_before:
                    file.write_bytes(self._fs.cat_file(self._at(name), start=0, end=at_most + 1))

        self._again(get, f"fetch {name}")

    def has(self, name: str) -> bool:
        """Whether there is such an object; how large it is, a web server need not know."""
        try:
            self._again(lambda: self._fs.info(self._at(name)), f"look at {name}")
        except FileNotFoundError:
            return False
        return True

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
                found = self._fs.ls(place, detail=False)
            except FileNotFoundError:
                return []
            # An empty object of the folder's own name, by which consoles make folders, lies not in it.
            return [Path(path).name for path in found if str(path).rstrip("/") != place]

        place = self._at(folder)
        return self._again(look, f"look into {folder or 'it'}")

    def matching(self, pattern: str) -> list[str]:
        """The URLs of all that a pattern matches, which begins with this store's URL; in their order."""

        def look() -> list[str]:
            self._fs.invalidate_cache()
            found = self._fs.glob(self._fs._strip_protocol(pattern))
            return sorted(self.url + str(path).rstrip("/").removeprefix(self._root) for path in found)

        return self._again(look, f"look for {pattern}")

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
            return ConfigError(what, where=self.where, got=masked(error), file=self.url, fix=fix)
        return TemporaryError(what, where=self.where, got=masked(error) or type(error).__name__, file=self.url, fix=fix)

    @property
    def _is_object_store(self) -> bool:
        return bool(getattr(self._fs, "async_impl", False))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else str(self._root)

    def _make_room(self, name: str) -> None:
        """Make a name's folder where folders are more than parts of names; in other stores that would make a bucket."""
        if not self._is_object_store:
            parent = self._at(name).rsplit("/", 1)[0]
            self._again(lambda: self._fs.makedirs(parent, exist_ok=True), f"make the folder of {name}")

    def _again(self, work: Callable[[], T], what: str) -> T:
        def told() -> T:
            try:
                return work()
            except Exception as error:
                said = _told(error)
            raise said  # here, so that nothing of what the library raised is told with it

        return retried(told, self.retry, f"{what} at {self.url}", passing=passes)


class _TooLongError(Exception):
    """More came than was wanted."""


def _limit(at_most: int, *, says_before: bool) -> Any:
    """fsspec's callback that ends a transfer of more than so many bytes.

    Args:
        says_before: the size that is said before the first byte is the object's, not that of a refusal's page.
    """
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]
        def set_size(self, size: int | None) -> None:
            if says_before and (size or 0) > at_most:
                raise _TooLongError

        def relative_update(self, inc: int = 1) -> None:
            self.value += inc
            if self.value > at_most:
                raise _TooLongError

    return Limit()


def _open(url: str, where: str, stall_s: float) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols, get_filesystem_class, known_implementations

    protocol = url.partition("://")[0]
    if protocol not in available_protocols():
        fix = did_you_mean(protocol, available_protocols())
        raise ConfigError("no such kind of store", where=where, got=repr(protocol), fix=fix)
    known = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
    package = _NEEDS.get(protocol, known)
    if importlib.util.find_spec(package) is None:
        fix = f"pip install 'lumos_pl[{_PACKAGES[package]}]'" if package in _PACKAGES else f"pip install {package}"
        raise ConfigError("the package for this store is missing", where=where, got=package, fix=fix)
    try:
        get_filesystem_class(protocol)
        fs, root = url_to_fs(url, **_options(protocol, stall_s))
        return fs, str(root).rstrip("/")
    except Exception as error:
        said, may_pass = masked(error) or type(error).__name__, isinstance(error, OSError) and error.errno is not None
    if may_pass:  # of one that is asked as it is opened
        raise StoreTrouble(said)
    raise ConfigError("this store cannot be opened", where=where, got=said, fix="see to its own package")


def _options(protocol: str, stall_s: float) -> dict[str, Any]:
    """What the libraries call the time after which a request without an answer has failed; rights are not among it."""
    if protocol in _NEEDS:
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
        return {"client_kwargs": {"timeout": limits}}
    if protocol in ("s3", "s3a"):
        once = {"max_attempts": 0}  # what fails is tried again, and told, by who asked
        return {"config_kwargs": {"connect_timeout": stall_s, "read_timeout": stall_s, "retries": once}}
    return {}


@functools.lru_cache(maxsize=64)
def _opened(url: str, where: str, stall_s: float, pid: int) -> Store:
    return Store(url, RetryConfig(attempts=1), where=where, stall_s=stall_s)


def opened(url: str, where: str, *, stall_s: float = STALL_S) -> Store:
    """The store of a folder, which tries once: for who knows better how long to try; one in each process.

    Raises:
        ConfigError: see `Store`.
    """
    return _opened(url, where, stall_s, os.getpid())  # what is open does not outlive a fork
