"""Shards from a web server, near, far and faulty, and from other stores: the batches are those of a local folder."""

from __future__ import annotations

import hashlib
import itertools
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.check import skip_bad, verify_shards
from data_modules.shards.folders import every_folder, shard_folders
from data_modules.shards.manifest import Manifest
from data_modules.shards.places import Access, CacheConfig, RemotePath, local_file, n_bytes, place_of
from data_modules.shards.put_folder import claim, put_folder, scratch_of
from data_modules.shards.writer import write_by_kind
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.experiment import CODEBOOK, samples, write_data
from faults.s3_server import DENIED, EXPIRED, Refusal, S3Server, s3_server
from faults.web_server import FAULTS, Fault, WebServer, web_server
from lumos_pl.errors import ConfigError, DataError, LumosError, TemporaryError
from lumos_pl.layout import compact_layout
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import masked
from tests.refusals import refused

RETRY = RetryConfig(attempts=4, wait_s=0.001, longest_wait_s=0.002)
ALL = 10**6
Batches = list[tuple[list[str], str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture
def server(data: Path) -> Iterator[WebServer]:
    with web_server(data) as one:
        yield one


def opened(
    root: object, cache: Path, *, most_bad: int = 0, workers: int = 0, room: int | str = "2MB"
) -> TokenDataModule:
    config = DataConfig(
        kind="joint",
        root=str(root),
        image=SourceConfig(batch_size=2),
        video=SourceConfig(batch_size=1, frames=9),
        num_workers=workers,
        prompt="{caption}",
        retry=RETRY,
        max_bad_samples=most_bad,
        cache=CacheConfig(dir=str(cache), max_bytes=room),
    )
    module = TokenDataModule(config, compact_layout(codebook_size=CODEBOOK), seed=3)
    module.setup("fit")
    return module


def batches(module: TokenDataModule, count: int = 24, *, start: int = 0) -> Batches:
    stream = module.stream(partial(StreamPosition, start=start, per_step=2))
    return [(one.names, hashlib.sha256(one.tokens.numpy().tobytes()).hexdigest()) for one in islice(stream, count)]


def local(data: Path, **rest: int) -> Batches:
    return batches(opened(data / "train", data / "unused", **rest))


def every_other(faults: tuple[Fault, ...]) -> Iterator[Fault | None]:
    return itertools.cycle([*itertools.chain(*((fault, None) for fault in faults))])


def in_cache(cache: Path) -> int:
    """Bytes of all files there, which come and go meanwhile."""
    sizes = 0
    for file in cache.rglob("*"):
        with suppress(FileNotFoundError):
            sizes += file.stat().st_size if file.is_file() and file.name != ".lock" else 0
    return sizes


@pytest.mark.seconds
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_afar_are_those_of_the_folder_and_each_shard_comes_once(
    server: WebServer, data: Path, tmp_path: Path, workers: int
) -> None:
    expected = local(data)
    assert batches(opened(f"{server.url}/train", tmp_path / "cache", workers=workers)) == expected
    assert max(count for name, count in server.requests.items() if name.endswith(".tar")) == 1
    server.requests.clear()
    assert batches(opened(f"{server.url}/train/", tmp_path / "cache"), 8, start=10) == expected[10:18]
    assert not any(name.endswith(".tar") for name in server.requests)  # another run has them from the cache


@pytest.mark.seconds
def test_a_server_that_does_not_know_how_large_its_files_are(server: WebServer, data: Path, tmp_path: Path) -> None:
    server.tells_size = False
    assert batches(opened(f"{server.url}/train", tmp_path / "cache")) == local(data)


@pytest.mark.seconds
def test_faults_on_the_way_cost_nothing_and_the_cache_stays_within_its_limit(
    server: WebServer, data: Path, tmp_path: Path
) -> None:
    cache, which = tmp_path / "cache", every_other(FAULTS)
    taken: list[int] = []
    module = opened(f"{server.url}/train", cache, room="1MiB")

    def fault(name: str) -> Fault | None:
        taken.append(in_cache(cache))
        return next(which)

    server.fault = fault
    assert batches(module) == local(data)
    assert set(server.injected) == set(FAULTS)
    assert max(taken) <= 1 << 20


@pytest.mark.seconds
def test_a_damaged_shard_is_damage_after_all_attempts_and_is_tolerated_as_a_local_one(
    server: WebServer, data: Path, tmp_path: Path
) -> None:
    manifest = Manifest.load(data / "train" / "images")
    file = data / "train" / "images" / manifest.shards[1].file
    content = bytearray(file.read_bytes())
    content[manifest.shards[1].ends[0] + 700] ^= 1
    file.write_bytes(content)
    with refused(DataError, file=f"{server.url}/train/images/shard-000001.tar"):
        batches(opened(f"{server.url}/train", tmp_path / "cache"))
    assert server.requests["train/images/shard-000001.tar"] >= RETRY.attempts
    assert batches(opened(f"{server.url}/train", tmp_path / "cache", most_bad=ALL)) == local(data, most_bad=ALL)


def test_other_content_each_time_is_trouble_of_the_storage(server: WebServer, data: Path, tmp_path: Path) -> None:
    file = data / "train" / "images" / "shard-000001.tar"
    content, number = file.read_bytes(), itertools.count()

    def fault(name: str) -> Fault | None:
        if name.endswith(file.name):
            file.write_bytes(content[:-100] + bytes([next(number) % 251 + 1]) * 100)
        return None

    server.fault = fault
    with refused(TemporaryError, file=f"{server.url}/train/images/shard-000001.tar"):
        batches(opened(f"{server.url}/train", tmp_path / "cache"))


@pytest.mark.parametrize(
    ("fault", "kind"), [("403", DataError), ("503", TemporaryError), ("reset", TemporaryError), ("cut", TemporaryError)]
)
def test_what_a_server_keeps_saying_decides_whose_turn_it_is(
    server: WebServer, tmp_path: Path, fault: Fault, kind: type[LumosError]
) -> None:
    module = opened(f"{server.url}/train", tmp_path / "cache")
    server.fault = lambda name: fault
    with refused(kind) as found:
        batches(module)
    assert str(found.value.file).startswith(f"{server.url}/train/")


def test_a_full_disk_of_this_machine_is_no_trouble_of_the_store(server: WebServer, tmp_path: Path) -> None:
    module = opened(f"{server.url}/train", tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with refused(TemporaryError, file=tmp_path / "cache" / "lumos-cache") as of_cache:
            batches(module)
        with refused(TemporaryError) as of_manifest:
            opened(f"{server.url}/train", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in of_cache.value.what and "disk" in of_manifest.value.what


def test_a_folder_that_is_not_there_is_named(server: WebServer, tmp_path: Path) -> None:
    with refused(DataError, file=f"{server.url}/trian/images/manifest.json"):
        opened(f"{server.url}/trian", tmp_path / "cache")
    assert every_folder([f"{server.url}/train"])[1].keys() == {Path("images"), Path("videos")}
    with refused(ConfigError, where="data.root"):
        shard_folders(f"{server.url}/tr*", "image")


@pytest.mark.seconds
def test_a_shard_that_is_gone_is_missing_beside_its_manifest(server: WebServer, data: Path, tmp_path: Path) -> None:
    module = opened(f"{server.url}/train", tmp_path / "cache")
    for file in (data / "train" / "images").glob("*.tar"):
        file.unlink()
    with refused(DataError) as found:
        batches(module)
    assert found.value.what == "shard missing" and str(found.value.file).startswith(f"{server.url}/train/images/")


# -- S3 ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_of_module() -> Iterator[S3Server]:
    pytest.importorskip("s3fs")
    with s3_server(page=10) as one:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield one


@pytest.fixture
def s3(s3_of_module: S3Server, made: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """One that has the data."""
    for name, value in s3_of_module.environment.items():
        monkeypatch.setenv(name, value)
    s3_of_module.clear()
    put(s3_of_module, made)
    return s3_of_module


def put(s3: S3Server, folder: Path) -> None:
    files = (file for file in folder.rglob("*") if file.is_file())
    s3.objects.update({file.relative_to(folder).as_posix(): file.read_bytes() for file in files})


def test_many_shards_take_few_requests(s3: S3Server, tmp_path: Path) -> None:
    write_by_kind(
        tmp_path / "many",
        samples(25),
        tokenizer="toy",
        codebook_size=CODEBOOK,
        strides=(4, 8, 8),
        samples_per_shard=1,
    )
    put(s3, tmp_path)
    module = opened("s3://bucket/many", tmp_path / "cache", room="1GB")
    assert s3.counted()["get"] == 4  # each manifest twice
    assert s3.counted()["list"] + s3.counted()["head"] <= 16
    s3.asked.clear()
    assert batches(module, 8) == batches(opened(tmp_path / "many", tmp_path / "unused"), 8)
    assert set(s3.counted()) == {"get"} and max(Counter(s3.asked).values()) == 1


@pytest.mark.parametrize("refusal", [DENIED, EXPIRED], ids=str)
def test_rights_that_end_amid_a_run_are_no_damage(s3: S3Server, tmp_path: Path, refusal: Refusal) -> None:
    module = opened("s3://bucket/train", tmp_path / "cache", most_bad=ALL)
    s3.fault = lambda asked: refusal
    with refused(DataError) as found:
        batches(module)
    assert str(found.value.file).endswith(".tar") and isinstance(found.value.__cause__, PermissionError)
    with refused(DataError, file="s3://bucket/train/images/manifest.json"):
        opened("s3://bucket/train", tmp_path / "cache")


def test_a_folder_may_be_read_that_may_not_be_listed(s3: S3Server, data: Path, tmp_path: Path) -> None:
    s3.fault = lambda asked: DENIED if asked.what == "list" or asked.key not in s3.objects else None
    assert batches(opened("s3://bucket/train", tmp_path / "cache"), 8) == local(data)[:8]
    with refused(DataError, file="s3://bucket/tr*"):
        opened("s3://bucket/tr*", tmp_path / "cache")


@pytest.mark.parametrize("url", ["s3://no-such/tr*", "s3://no-such/train", "s3://Bücket/train", "s3://bucket/trai"])
def test_what_is_not_there_is_named(s3: S3Server, tmp_path: Path, url: str) -> None:
    with refused(DataError) as found:
        opened(url, tmp_path / "cache")
    assert str(found.value.file).startswith(url)


def test_a_data_set_that_is_gone_amid_a_run_is_trouble_of_the_storage(s3: S3Server, tmp_path: Path) -> None:
    module = opened("s3://bucket/train", tmp_path / "cache")
    s3.objects.clear()
    with refused(TemporaryError) as found:
        batches(module)
    assert str(found.value.file).endswith(".tar") and "|" not in str(found.value.got)


def test_a_folder_is_put_by_who_may_only_write_and_not_again_from_another_machine(
    s3: S3Server, data: Path, tmp_path: Path
) -> None:
    place = place_of("s3://bucket/put")
    assert isinstance(place, RemotePath)
    s3.fault = lambda asked: DENIED if asked.what == "delete" else None
    scratch_of(place)
    shutil.copytree(data / "train", tmp_path / "there")
    assert put_folder(data / "train", place) == 10
    assert put_folder(tmp_path / "there", place) == 0
    assert max(count for asked, count in Counter(s3.asked).items() if asked.what == "put") == 1


def test_other_stores_and_their_patterns(data: Path, tmp_path: Path) -> None:
    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    for part in "train", "val":
        memory.put(f"{data / part}/", f"{url}/part-{part}", recursive=True)
    assert batches(opened(f"{url}/part-train", tmp_path / "cache")) == local(data)
    assert batches(opened(f"file://{data / 'train'}", tmp_path / "cache")) == local(data)
    assert list(map(str, shard_folders(f"{url}/part-*", "image"))) == [
        f"{url}/part-train/images",
        f"{url}/part-val/images",
    ]
    memory.pipe_file(f"{url}/part-val/images/more.tar", b"")
    (found,) = verify_shards(place_of(f"{url}/part-val/images"))
    assert str(found.file) == f"{url}/part-val/images/more.tar"


def test_parts_with_mapped_rows_come_from_a_store_as_from_a_folder(data: Path, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        part = (data / split).rename(data / f"part-{number:05d}-of-00002")
        for kind in "images", "videos":
            assert Manifest.upgrade(part / kind)
    memory, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}/parts"
    memory.put(f"{data}/", url, recursive=True)
    assert batches(opened(url, tmp_path / "cache")) == batches(opened(data, tmp_path / "unused"))
    memory.rm(f"{url}/part-00001-of-00002", recursive=True)
    with refused(DataError, file=f"{url}/part-00001-of-00002"):
        opened(url, tmp_path / "cache")


@pytest.mark.seconds
def test_shards_are_checked_and_saved_where_they_lie(server: WebServer, data: Path, tmp_path: Path) -> None:
    place = place_of(f"{server.url}/train/images")
    assert verify_shards(place) == []
    (data / "train" / "images" / "shard-000001.tar").write_bytes(b"nothing")
    (found,) = verify_shards(place)
    assert str(found.file) == f"{server.url}/train/images/shard-000001.tar"
    assert skip_bad(place, tmp_path / "saved", most_bad=0.5) == (9, 3)
    assert verify_shards(tmp_path / "saved") == []


def test_a_file_that_is_mapped_comes_into_the_cache_whole(server: WebServer, data: Path, tmp_path: Path) -> None:
    content = (data / "train" / "images" / "manifest.json").read_bytes()
    cache = CacheConfig(dir=str(tmp_path / "cache")).opened()
    place = place_of(f"{server.url}/train/images/manifest.json", Access(cache=cache))
    digest = hashlib.sha256(content).hexdigest()
    assert local_file(place, digest, len(content)).read_bytes() == content
    with refused(DataError, file=place):
        local_file(place, "0" * 64, len(content))


# -- putting -----------------------------------------------------------------------------------------


def test_a_folder_is_put_once_and_never_over_anothers(data: Path, tmp_path: Path) -> None:
    place = place_of(f"memory://{tmp_path.name}/put")
    assert isinstance(place, RemotePath)
    (data / "train" / "tokenize.lock").touch()
    assert put_folder(data / "train", place) == 10
    assert put_folder(data / "train", place) == 0
    assert verify_shards(place / "images") == verify_shards(place / "videos") == []
    assert not (place / "tokenize.lock").exists()
    (data / "val" / "images" / "manifest.json").write_text("{}")
    with refused(DataError, file=f"{place}/images/manifest.json"):
        put_folder(data / "val", place, retry=RETRY)


def test_what_takes_nothing_is_found_before_the_work(server: WebServer, tmp_path: Path) -> None:
    web, memory = place_of(server.url), place_of(f"memory://{tmp_path.name}/empty")
    assert isinstance(web, RemotePath) and isinstance(memory, RemotePath)
    with refused(ConfigError, file=server.url):
        scratch_of(web)
    assert scratch_of(memory) == scratch_of(memory) and memory.names() == frozenset()


def test_a_folder_that_a_console_made_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an object of no bytes, whose name is the folder's with a slash."""
    memory, place = fsspec.filesystem("memory"), place_of(f"memory://{tmp_path.name}/images")
    assert isinstance(place, RemotePath)
    memory.makedirs(f"/{tmp_path.name}/images")
    listed = type(memory).ls
    monkeypatch.setattr(type(memory), "ls", lambda fs, path, **how: [f"{path}/", *listed(fs, path, **how)])
    assert place.names() == frozenset()
    claim(tmp_path / "scratch", place, {}, "a list")
    memory.pipe_file(f"/{tmp_path.name}/images/images/shard-000000.tar", b"")
    with refused(DataError, file=place.url):
        claim(tmp_path / "another", place, {}, "another list")


# -- rights, sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAXXXX:very-secret@bucket/data",
        "https://me:very-secret@host/data",
        "https://host/data?X-Amz-Signature=very-secret&X-Amz-Expires=3",
        "https://host/data#very-secret",
        "simplecache::s3://bucket/very-secret",
    ],
)
@pytest.mark.parametrize("setting", ["root", "val_root"])
def test_rights_in_a_url_are_refused_and_not_repeated(url: str, setting: str) -> None:
    with pytest.raises(ConfigError) as found:
        DataConfig(**{setting: url})
    assert f"data.{setting}" in str(found.value)
    assert "very-secret" not in str(found.value) or "::" in url


@pytest.mark.parametrize("url", ["http:///data", "https://host:99999/data", "s3:///data", "http://[::1/data"])
def test_a_url_that_names_nothing_is_refused_before_anything_is_asked(url: str) -> None:
    with refused(ConfigError, where="data.root"):
        DataConfig(root=url)


@pytest.mark.parametrize("url", ["S3://bucket/data", "s4://bucket/data"])
def test_a_store_of_no_kind_that_is_known_is_refused(url: str, tmp_path: Path) -> None:
    with refused(ConfigError, where="data.root"):
        opened(url, tmp_path)


@pytest.mark.parametrize(
    ("error", "kind"), [(OSError("no library"), ConfigError), (OSError(111, "no answer"), TemporaryError)]
)
def test_a_store_that_does_not_open_is_told(
    error: OSError, kind: type[LumosError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("fsspec.core.url_to_fs", fails)
    with refused(kind):
        opened(f"memory://{tmp_path.name}/closed", tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        "GET https://b.s3.amazonaws.com/k?X-Amz-Credential=a&X-Amz-Signature=very-secret failed",
        "403, message='Forbidden', url='https://me:very-secret@host/x'",
        "headers: X-Amz-Security-Token: very-secret",
        "AWSAccessKeyId=very-secret&Expires=1",
        "{'aws_secret_access_key': 'very-secret'}",
        "wrong key from-the-environment",
    ],
)
def test_what_a_library_says_of_rights_is_masked(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    assert "very-secret" not in masked(said) and "environment" not in masked(said)


def test_sizes_have_units() -> None:
    assert [n_bytes(size, "x") for size in (5 << 20, "100GB", "1.5 TB", "64MiB", "2000000")] == [
        5 << 20,
        10**11,
        1_500_000_000_000,
        64 << 20,
        2_000_000,
    ]
    for size in "many", "5 apples", "-3GB", "1KB", "nan", "":
        with refused(ConfigError, where="data.cache.max_bytes"):
            DataConfig(cache=CacheConfig(max_bytes=size))
