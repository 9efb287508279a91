"""A folder in an object store, by fsspec: which store a URL means, and with which rights, is fsspec's business."""

from __future__ import annotations

import errno
import functools
import importlib.util
import logging
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
LARGE = 100 << 20  # bytes from which on s3fs sends a file in parts
PARTS = 4  # of a large file that come or go at once; S3's have 50 MiB
PIECE_BYTES = 1 << 16  # that may come beyond what is wanted before a transfer is ended

_PACKAGES = {"s3fs": "s3", "gcsfs": "gs", "aiohttp": "http"}  # our extras that bring them, called as what they open
_S3, _GS = ("s3", "s3a"), ("gs", "gcs")
_NEEDS = {"http": "aiohttp", "https": "aiohttp"}  # of what is part of fsspec itself
_SECRETS = re.compile(
    r"(?<=//)[^/\s@]+@"  # of a URL: who asks,
    r"|\?[^\s'\"]+"  # and what signs for it
    r"|(?i:(?<![a-z0-9])(?:x-(?:amz|goog)-[a-z-]+|awsaccesskeyid|(?:access|secret|session)\w*(?:key|token|id)|signature|sig|token|password)"
    r"['\"]?\s*[=:]\s*['\"]?[^\s'\",;&]+)"
)
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, LumosError, ImportError)
_WITHOUT_RIGHTS = {  # how the libraries, and S3, call it that there are none to ask with, or none that hold
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"),
    *("UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError"),
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"),
    "400",  # all that S3 says of the latter in an answer that has no body
}
_WRONG_NAME = {"InvalidBucketName", "ParamValidationError", "PermanentRedirect"}


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
    if "@" in parts.netloc or "?" in url or "#" in url:
        what = "a URL with rights in it, or with signs that they stand behind, would stand in files"
        fix = "leave rights to the environment, as the store's own tools do; names have no ? and no #"
        raise ConfigError(what, where=where, got=masked(url.partition("#")[0]), fix=fix)
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
    nameless = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    said, (status, *names) = masked(getattr(error, "strerror", None) or error) or nameless, _answer(error)
    if isinstance(status, int) and str(status) not in said:
        said = f"{status or type(error).__name__} {masked(getattr(error, 'message', '')) or said}"
    if "NoSuchUpload" in names:  # what was sent in parts is sent anew
        return StoreTrouble(said)
    if status in (404, 410) or not _WRONG_NAME.isdisjoint(names):
        return FileNotFoundError(said)
    if status in (401, 403) or said.startswith("Forbidden: ") or not _WITHOUT_RIGHTS.isdisjoint(names):
        return PermissionError(said)
    for kind in _FINAL[:4]:
        if isinstance(error, kind):
            return kind(said)
    if is_full(error):  # the disk here, and not the store
        return StoreTrouble(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return StoreTrouble(said)


def _answer(error: Exception) -> tuple[int | None, str, str]:
    """The status that a store answered with, where the libraries tell it, and the names that what is wrong has."""
    response = getattr(error.__cause__, "response", None)  # botocore's, of which s3fs tells
    if isinstance(response, dict):
        status, code = response.get("ResponseMetadata", {}).get("HTTPStatusCode"), response.get("Error", {}).get("Code")
        return status, str(code), type(error).__name__
    statuses = (getattr(error, name, None) for name in ("status", "status_code", "code"))  # aiohttp, Azure's, gcsfs
    return next((status for status in statuses if isinstance(status, int)), None), "", type(error).__name__


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
        self._by_parts, _ = _open(self.url, where, stall_s, by_parts=True)

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
            expected = file.stat().st_size
            fs = self._by_parts if expected >= LARGE else self._fs
            fs.put_file(str(file), self._at(name))
            if (got := self._fs.info(self._at(name))["size"]) != expected:
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
                self._by_parts.get_file(self._at(name), str(file))
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
            found = self._fs.ls(place, detail=False)
            # An empty object of the folder's own name, by which consoles make folders, lies not in it.
            return [Path(path).name for path in found if str(path).rstrip("/") != place]

        place = self._at(folder)
        try:
            return self._again(look, f"look into {folder or 'it'}")
        except FileNotFoundError:
            return []

    def matching(self, pattern: str) -> list[str]:
        """The URLs of all that a pattern matches, which begins with this store's URL; in their order."""

        def look() -> list[str]:
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
                self._fs.invalidate_cache()  # what was there may have gone, and others write, too
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


def _open(url: str, where: str, stall_s: float, *, by_parts: bool = False) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Args:
        by_parts: for files of any size: a few of their parts, which are in memory, come or go at once, and one that
            fails is tried again by the library. Else a file comes as one stream, and what fails is told.
    """
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
        fs, root = url_to_fs(url, **_options(protocol, stall_s, by_parts=by_parts))
        if protocol in _GS:
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it tells failures with a traceback
        if protocol in _S3 and not by_parts:
            fs.retries = 1  # it has five, of requests, and five more of what is made of them
        return fs, str(root).rstrip("/")
    except Exception as error:
        said, may_pass = masked(error) or type(error).__name__, isinstance(error, OSError) and error.errno is not None
    if may_pass:  # of one that is asked as it is opened
        raise StoreTrouble(said)
    raise ConfigError("this store cannot be opened", where=where, got=said, fix="see to its own package")


def _options(protocol: str, stall_s: float, *, by_parts: bool) -> dict[str, Any]:
    """What the libraries call it when a request has failed, and how much comes at once; rights are not among it."""
    if protocol in (*_NEEDS, *_GS):
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
        return {"requests_timeout": limits} if protocol in _GS else {"client_kwargs": {"timeout": limits}}
    if protocol in _S3:
        once = {"max_attempts": 0}  # what fails is tried again, and told, by who asked
        config = {"connect_timeout": stall_s, "read_timeout": stall_s, "retries": once}
        return {"config_kwargs": config, "max_concurrency": PARTS if by_parts else 1}
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
