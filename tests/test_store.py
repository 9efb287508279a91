"""A folder of an object store, which refuses, breaks off, falls silent, and has thousands of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import fsspec
import pytest

from faults.s3_server import DENIED, EXPIRED, INTERNAL, SLOW_DOWN, TOO_MANY, Fault, Refusal, S3Server, s3_server
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import Store, StoreTrouble

pytest.importorskip("s3fs")

ATTEMPTS = 2
ROOT = "s3://bucket/run1"
SIGNS = ["with space", "a+b", "ü/ö", "a%20b", "100%;a&b='c'", "@x:y", "x\\y"]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server(page=100) as one:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield one


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.clear()
    return server


def store(url: str = ROOT, *, attempts: int = ATTEMPTS, stall_s: float = 20.0) -> Store:
    return Store(url, RetryConfig(attempts=attempts, wait_s=0), where="data.root", stall_s=stall_s)


def operations(one: Store, file: Path) -> dict[str, Callable[[], object]]:
    """All that asks a store, by the kind of its request that a fault befalls."""
    file.write_bytes(b"small")
    return {
        "get": lambda: one.fetch("a", file.with_name("fetched"), at_most=5),
        "head": lambda: one.has("a"),
        "list": lambda: one.names(""),
        "put": lambda: one.send(file, "a"),
        "delete": lambda: one.remove("a"),
    }


def test_a_listing_has_as_many_pages_as_it_needs_and_a_name_is_not_the_beginning_of_another(s3: S3Server) -> None:
    s3.objects.update({f"run10/images/shard-{number:06d}.tar": b"" for number in range(250)})
    s3.objects["run1/a"] = b"alone"
    assert len(store("s3://bucket/run10").names("images")) == 250
    assert s3.counted() == {"list": 3}
    assert store().names("") == ["a"]
    assert store("s3://bucket/run").names("") == []
    assert not store("s3://bucket").has("run")
    assert store("s3://bucket").matching("s3://bucket/run1*") == ["s3://bucket/run1", "s3://bucket/run10"]


def test_names_with_signs_are_themselves(s3: S3Server, tmp_path: Path) -> None:
    for name in SIGNS:
        one = store(f"s3://bucket/{name}")
        one.write("file", name.encode())
        assert s3.objects[f"{name}/file"] == name.encode()
        assert one.read("file") == name.encode() and one.names("") == ["file"]
        assert one.matching(f"{one.url}/f*") == [f"{one.url}/file"]
        one.fetch("file", tmp_path / "file", at_most=100)
        assert (tmp_path / "file").read_bytes() == name.encode()


@pytest.mark.parametrize("fault", [SLOW_DOWN, TOO_MANY, INTERNAL, "reset", "cut"], ids=str)
def test_what_passes_is_tried_as_often_as_was_asked_for(s3: S3Server, tmp_path: Path, fault: Fault) -> None:
    s3.objects["run1/a"] = b"small"
    for kind, operation in operations(store(), tmp_path / "file").items():
        if kind == "head" and isinstance(fault, str):
            continue  # has no body to break off
        s3.asked.clear()
        s3.fault = lambda asked: fault
        with pytest.raises(StoreTrouble):
            operation()
        assert s3.counted()[kind] == ATTEMPTS
        numbers = count()
        s3.fault = lambda asked, numbers=numbers: fault if next(numbers) == 0 else None  # type: ignore[misc]
        operation()


def test_a_silent_store_is_asked_once_in_each_attempt(s3: S3Server, tmp_path: Path) -> None:
    s3.objects["run1/a"] = b"small"
    s3.fault = lambda asked: "stall"
    with pytest.raises(StoreTrouble):
        store(attempts=1, stall_s=0.1).fetch("a", tmp_path / "file", at_most=5)
    assert s3.counted() == {"get": 1}


@pytest.mark.parametrize("refusal", [DENIED, EXPIRED, (400, "AuthorizationHeaderMalformed"), (400, "InvalidToken")])
def test_what_is_for_a_person_is_not_tried_again(s3: S3Server, tmp_path: Path, refusal: Refusal) -> None:
    for operation in operations(store(), tmp_path / "file").values():
        s3.fault = lambda asked: refusal
        with pytest.raises(PermissionError):
            operation()


@pytest.mark.parametrize("url", ["s3://Bücket/x", "s3://no-such/x"])
def test_a_bucket_that_cannot_be_there_is_not_there(s3: S3Server, tmp_path: Path, url: str) -> None:
    one = store(url)
    assert one.read("a") is None and one.names("") == [] and not one.has("a")
    with pytest.raises(FileNotFoundError):
        one.write("a", b"")
    with suppress(FileNotFoundError):
        assert one.matching(f"{url}*") == []


def test_what_others_do_meanwhile_is_seen(s3: S3Server) -> None:
    s3.objects["run1/a"] = b"first"
    one = store()
    assert one.names("") == ["a"]
    s3.objects["run1/b"] = b"second"
    assert one.read("b") == b"second" and one.has("b")
    s3.objects.clear()
    assert one.size("a") is None and not one.has("a")


def test_an_upload_in_parts_that_is_gone_is_begun_anew(s3: S3Server, tmp_path: Path) -> None:
    numbers = count()
    s3.fault = lambda asked: (404, "NoSuchUpload") if asked.what == "put" and next(numbers) == 0 else None
    (tmp_path / "file").write_bytes(b"whole")
    store().send(tmp_path / "file", "a")
    assert s3.objects["run1/a"] == b"whole"


def test_a_large_file_comes_as_one_stream(s3: S3Server, tmp_path: Path) -> None:
    """Its parts would lie in memory, those of all that is fetched at once."""
    s3.objects["run1/a"] = bytes(size := (50 << 20) + 1)
    store().fetch("a", tmp_path / "file", at_most=size)
    assert (tmp_path / "file").stat().st_size == size
    assert s3.counted() == {"get": 1}


class HttpError(Exception):
    """As gcsfs tells of an answer (`code`), and Azure's library (`status_code`)."""

    def __init__(self, **said: int) -> None:
        super().__init__("no access")
        vars(self).update(said)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Forbidden: b/bucket/o\nno access"), PermissionError),  # gcsfs's 403
        (HttpError(code=401), PermissionError),
        (HttpError(status_code=403), PermissionError),
        (HttpError(code=503), StoreTrouble),
        (TimeoutError(), StoreTrouble),
    ],
)
def test_stores_of_other_kinds_refuse_in_their_own_words(
    error: Exception, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*args: object, **how: object) -> bytes:
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", refuses)
    with pytest.raises(kind):
        store(f"memory://{tmp_path.name}").read("a")
