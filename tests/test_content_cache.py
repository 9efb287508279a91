"""The cache of a machine: one fetches, others wait; room is made of what is not in use; what was killed is swept."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.content_cache import SUBFOLDER, ContentCache, OtherContentError
from lumos_pl.machinery.store import PIECE_BYTES
from tests.refusals import refused

SIZE = 1 << 16
ROOM = SIZE + PIECE_BYTES  # that a file takes while it comes


def content(number: int) -> bytes:
    return number.to_bytes(2, "big") * (SIZE // 2)


def digest(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def bring(cache: ContentCache, number: int, within_s: float = 10) -> None:
    with cache.bring(digest(number), SIZE, lambda file: file.write_bytes(content(number)), within_s=within_s) as file:
        assert file.read() == content(number)


def taken(folder: Path) -> int:
    """Bytes of all files there, which come and go meanwhile: seen alike twice, or one may count with its next."""

    def sizes() -> dict[str, int]:
        found = {}
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                found[file.name] = file.stat().st_size if file.name != ".lock" else 0
        return found

    seen = sizes()
    while seen != (again := sizes()):
        seen = again
    return sum(seen.values())


def there(cache: ContentCache) -> set[int]:
    return {number for number in range(64) if cache.file(digest(number)).exists()}


def test_a_file_is_fetched_once_however_many_want_it(tmp_path: Path) -> None:
    begun, others_wait, fetched = threading.Event(), threading.Event(), []

    def fetch(file: Path) -> None:
        fetched.append(file)
        begun.set()
        assert others_wait.wait(30)
        file.write_bytes(content(1))

    def want() -> bytes:
        with ContentCache(tmp_path, 10 * ROOM).bring(digest(1), SIZE, fetch) as file:
            return file.read()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(want) for _ in range(4)]
        assert begun.wait(30)
        others_wait.set()
        assert {one.result() for one in asked} == {content(1)}
    assert len(fetched) == 1


def test_what_was_used_least_recently_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 3 * SIZE + ROOM)
    for number in range(3):
        bring(cache, number)
        os.utime(cache.file(digest(number)), (number, number))
    in_use = cache.held(digest(0))
    os.utime(cache.file(digest(0)), (0, 0))
    assert in_use is not None
    bring(cache, 3)
    bring(cache, 4)
    assert {0, 4} <= there(cache) and 1 not in there(cache)
    in_use.close()


def test_everything_in_use_is_waited_for_and_then_said(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, ROOM)
    bring(cache, 0)
    in_use = cache.held(digest(0))
    assert in_use is not None
    with refused(TemporaryError, got=f"{SIZE} of {ROOM} bytes in use"):
        bring(cache, 1, within_s=0)
    in_use.close()
    bring(cache, 1)
    assert there(cache) == {1}


@pytest.mark.parametrize("made", [b"", content(2)[:100], content(3), content(2) + b"more"])
def test_other_content_is_handed_over_and_never_kept(tmp_path: Path, made: bytes) -> None:
    cache = ContentCache(tmp_path, 2 * ROOM)
    with pytest.raises(OtherContentError) as found:
        cache.bring(digest(2), SIZE, lambda file: file.write_bytes(made))
    assert found.value.data == made[: SIZE + 1]
    assert [file.name for file in (tmp_path / SUBFOLDER).iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_swept_or_taken_over(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 3 * ROOM)
    cache.sweep()
    mine = tmp_path / SUBFOLDER / "notes.txt"
    mine.write_text("of somebody")
    for number in 1, 2:
        cache.file(f"{digest(number)}.{ROOM}.partial").write_bytes(b"half")
    bring(cache, 1)
    cache.sweep()
    assert {file.name for file in mine.parent.iterdir()} == {".lock", mine.name, digest(1)}


def test_the_limit_counts_what_is_coming(tmp_path: Path) -> None:
    cache, most = ContentCache(tmp_path, 4 * ROOM), []

    def fetch(number: int, file: Path) -> None:
        file.write_bytes(content(number) + b"\0" * PIECE_BYTES)  # the most that may come
        most.append(taken(file.parent))
        file.write_bytes(content(number))

    def want(number: int) -> None:
        ContentCache(tmp_path, 4 * ROOM).bring(digest(number), SIZE, partial(fetch, number)).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(want, range(40)))
    assert max(most) <= cache.max_bytes and len(most) == 40


def test_a_folder_that_cannot_be_used_or_is_too_small_is_named(tmp_path: Path) -> None:
    with refused(ConfigError, where="cache.max_bytes"):
        bring(ContentCache(tmp_path, SIZE), 1)
    (tmp_path / "file").touch()
    with refused(ConfigError, where="cache.dir"):
        bring(ContentCache(tmp_path / "file", ROOM), 1)


@pytest.mark.parametrize("name", [".lock", digest(1), f"{digest(1)}.{ROOM}.partial"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_file_in_the_place_of_its_own_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    place = tmp_path / SUBFOLDER / name
    place.parent.mkdir()
    make(place)
    with refused(ConfigError, where="cache.dir", file=place):
        bring(ContentCache(tmp_path, 2 * ROOM), 1)
