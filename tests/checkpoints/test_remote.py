"""Checkpoints in an object store and back: a folder, fsspec's memory, and a local S3 server that answers 503."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lumos_pl.checkpoints.complete import complete, kept_checkpoints, newest_complete
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.remote import SETTING, Upload, restore
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import check_url
from tests.refusals import refused

BUSY = OSError(errno.EBUSY, "Please reduce your request rate")  # as s3fs tells of a 503
RETRY = RetryConfig(attempts=3, wait_s=0)
KINDS = ["file", "memory", "s3"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The endpoint of a local S3."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def with_endpoint(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty store of each kind."""
    match request.param:
        case "file":
            yield f"file://{tmp_path}/store"
        case "memory":
            yield f"memory://{tmp_path.name}/runs"
        case "s3":
            with_endpoint(request.getfixturevalue("server"), monkeypatch)
            bucket = f"bucket-{abs(hash(tmp_path))}"
            fsspec.filesystem("s3").mkdir(bucket)
            yield f"s3://{bucket}/runs"


def objects(url: str) -> dict[str, bytes]:
    """All that a store holds, by what follows the run's name."""
    fs, root = URL_TO_FS(url)
    fs.invalidate_cache()
    return {path.split("/exp/one/", 1)[1]: fs.cat_file(path) for path in fs.find(root)}


def put(url: str, name: str, data: bytes) -> None:
    fs, root = URL_TO_FS(url)
    if not fs.async_impl:
        fs.makedirs(f"{root}/exp/one/{name}".rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(f"{root}/exp/one/{name}", data)


def save(run: Path, step: int, *, sharded: bool = False, content: bytes = b"weights of ") -> Path:
    """A complete checkpoint, and what the run has logged up to it."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}.ckpt"
    partial = partial_of(final)
    if sharded:
        partial.mkdir()
        for name in ".metadata", "__0_0.distcp", "meta.pt":
            (partial / name).write_bytes(content + b"%d in %s" % (step, name.encode()))
    else:
        partial.write_bytes(content + b"%d" % step)
    complete(partial, final)
    write_atomically(run / "config.yaml", "seed: 0\n")
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(f'{{"step": {step - 1}}}\n')
    return final


def uploading(url: str, run: Path, keep: int = 2, stays: Callable[[Path], bool] = lambda file: False) -> Upload:
    return Upload(url, run, keep=keep, stays=stays, retry=RETRY)


def upload(uploads: Upload, *checkpoints: Path) -> None:
    for checkpoint in checkpoints:
        uploads.begin(checkpoint)
        uploads.finish(60)


@pytest.mark.seconds
@pytest.mark.parametrize("sharded", [False, True])
def test_a_new_machine_goes_on_from_what_was_uploaded(url: str, tmp_path: Path, sharded: bool) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    uploads = uploading(url, run)
    upload(uploads, *(save(run, step, sharded=sharded) for step in (10, 20)))
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 2')  # is just being written
    upload(uploads, save(run, 30, sharded=sharded))
    restored = restore(url, other, retry=RETRY)
    assert restored is not None and restored.name == "step-00000030.ckpt"
    assert newest_complete(other / "checkpoints") == (restored, [])
    check_digest(other / "checkpoints" / "last.ckpt")
    assert (other / "config.yaml").read_text() == "seed: 0\n"
    assert (other / "metrics.jsonl").read_text().startswith('{"step": 9}\n{"step": 19}\n')
    assert restore(url, other, retry=RETRY) is None  # it is there
    upload(uploading(url, other), save(other, 40, sharded=sharded))  # and it is the same run
    assert {name[23:25] for name in objects(url) if name.startswith("checkpoints/")} == {"30", "40"}


def test_only_what_has_its_digest_is_whole_and_what_is_damaged_is_passed_over(url: str, tmp_path: Path) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    uploads = uploading(url, run, keep=0)
    upload(uploads, save(run, 10), save(run, 20), save(run, 30, sharded=True))
    put(url, "checkpoints/step-00000020.ckpt", b"weights of 2?")
    put(url, "checkpoints/step-00000030.ckpt/meta.pt", b"")
    put(url, "checkpoints/step-00000040.ckpt", b"half of it")
    put(url, "checkpoints/step-00000050.ckpt.sha256", b"no digest")
    put(url, "checkpoints/step-00000060.ckpt.sha256", b"0" * 64 + b"  step-00000060.ckpt/../../../x\n")
    restored = restore(url, other, retry=RETRY)
    assert restored is not None and restored.name == "step-00000010.ckpt"
    assert [path.name for path in kept_checkpoints(other / "checkpoints")] == ["step-00000010.ckpt"]
    assert not list((other / "checkpoints").glob(".*.partial"))


@pytest.mark.seconds
def test_the_store_keeps_what_the_run_keeps_and_nobody_elses_are_touched(url: str, tmp_path: Path) -> None:
    run = tmp_path / "exp" / "one"
    run.mkdir(parents=True)
    uploads = uploading(url, run, keep=2, stays=lambda file: file.name == "step-00000020.ckpt")
    uploads.check()
    put(url, "checkpoints/step-00000001.ckpt", b"theirs")
    put(url, "checkpoints/step-00000001.ckpt.sha256", b"theirs too")
    put(url, "notes", b"theirs as well")
    upload(uploads, *(save(run, step) for step in (10, 20, 30, 40, 50)))
    steps = [name[12:-7] for name in sorted(objects(url)) if name.endswith(".sha256")]
    assert [name.removeprefix("step-000000").removesuffix(".ckpt") for name in steps] == ["01", "20", "40", "50"]
    assert {b"theirs", b"theirs too", b"theirs as well"} <= set(objects(url).values())


def test_another_run_of_the_name_is_refused(url: str, tmp_path: Path) -> None:
    upload(uploading(url, tmp_path / "a" / "exp" / "one"), save(tmp_path / "a" / "exp" / "one", 10))
    before, other = objects(url), tmp_path / "b" / "exp" / "one"
    uploads = uploading(url, other)
    other.mkdir(parents=True)
    with refused(ConfigError, where="checkpoint.upload"):
        uploads.check()
    upload(uploads, save(other, 20))
    assert objects(url) == before


def test_nothing_newer_and_nothing_of_the_users_is_replaced(url: str, tmp_path: Path) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    upload(uploading(url, run), save(run, 10), save(run, 20))
    save(other, 30)
    assert restore(url, other, retry=RETRY) is None
    shutil.rmtree(other)
    (other / "checkpoints").mkdir(parents=True)
    (other / "metrics.jsonl").write_text("mine\n")
    (other / "checkpoints" / "step-00000020.ckpt").write_text("mine too")
    assert restore(url, other, retry=RETRY) is not None
    contents = {file.read_bytes() for file in other.rglob("*") if file.is_file()}
    assert {b"mine\n", b"mine too", b"weights of 20"} <= contents


URL_TO_FS = fsspec.core.url_to_fs


class Between:
    """A store's file system, each of whose operations something comes before."""

    def __init__(self, fs: Any, before: Callable[[str], None]) -> None:
        self._fs, self._before = fs, before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if not callable(found):
            return found

        def operation(*arguments: Any, **named: Any) -> Any:
            self._before(name)
            return found(*arguments, **named)

        return operation


def put_between(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    def opened(url: str, **named: Any) -> tuple[Any, str]:
        fs, root = URL_TO_FS(url, **named)
        return Between(fs, before), root

    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)


class Trouble:
    """Answers 503 to those calls that `fails` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.failed, self.fails = 0, 0, lambda call: False
        put_between(monkeypatch, self._before)

    def _before(self, name: str) -> None:
        if name == "invalidate_cache":  # asks nobody
            return
        self.calls += 1
        if self.fails(self.calls):
            self.failed += 1
            raise BUSY


def test_a_503_now_and_then_costs_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    trouble = Trouble(monkeypatch)
    trouble.fails = lambda call: call % 3 == 1
    upload(uploading(url, run), *(save(run, step, sharded=step == 20) for step in (10, 20, 30)))
    restored = restore(url, other, retry=RETRY)
    assert restored is not None and restored.name == "step-00000030.ckpt"
    assert trouble.failed > 20


def test_an_outage_loses_no_run_and_the_next_one_is_uploaded(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "exp" / "one"
    run.mkdir(parents=True)
    trouble, uploads = Trouble(monkeypatch), uploading(url, run)
    trouble.fails = lambda call: True
    uploads.check()  # it may answer later
    upload(uploads, save(run, 10))
    assert any("step-00000010.ckpt" in line for line in caplog.messages)
    with refused(TemporaryError, where="checkpoint.upload"):
        restore(url, tmp_path / "there" / "exp" / "one", retry=RETRY)
    trouble.fails = lambda call: False
    upload(uploads, save(run, 20))
    assert "checkpoints/step-00000020.ckpt.sha256" in objects(url)
    assert "a-secret" not in caplog.text


def test_what_is_uploaded_stays_here_until_then_and_the_end_waits_within_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, url = tmp_path / "exp" / "one", f"memory://{tmp_path.name}"
    uploads, begun, goes_on = uploading(url, run), threading.Event(), threading.Event()

    def slow(name: str) -> None:
        if name == "put_file":
            begun.set()
            assert goes_on.wait(60)

    put_between(monkeypatch, slow)
    first, second, third = (save(run, step) for step in (10, 20, 30))
    uploads.begin(first)
    assert begun.wait(60)
    uploads.begin(second)
    uploads.begin(third)
    assert [uploads.holds(checkpoint) for checkpoint in (first, second, third)] == [True, False, True]
    uploads.finish(0)
    assert any("step-00000030.ckpt" in line for line in caplog.messages)
    goes_on.set()
    uploads.finish(60)
    assert not uploads.holds(third)
    assert {name for name in objects(url) if name.endswith(".sha256")} == {
        "checkpoints/step-00000010.ckpt.sha256",
        "checkpoints/step-00000030.ckpt.sha256",
    }


@pytest.mark.parametrize(
    "url", ["runs", "s3:/bucket", "s3://", "s3://key:secret@bucket/x", "gs://b/x?token=secret", "s3://b\n/x", "://x"]
)
def test_what_is_no_url_or_holds_rights_is_refused(url: str) -> None:
    with refused(ConfigError, where="checkpoint.upload") as caught:
        check_url(url, SETTING)
    assert "secret" not in str(caught.value)


def test_a_store_that_is_not_known_or_not_there_is_one_line(tmp_path: Path, server: str, monkeypatch: Any) -> None:
    run = tmp_path / "exp" / "one"
    run.mkdir(parents=True)
    with_endpoint(server, monkeypatch)
    for url in "s4://bucket/x", "s3://no-such-bucket/x":
        with refused(ConfigError, where="checkpoint.upload"):
            uploading(url, run).check()


def test_a_machine_lost_before_its_first_checkpoint_was_uploaded_is_followed_by_another(
    url: str, tmp_path: Path
) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    for folder in run, other:
        folder.mkdir(parents=True)
    uploading(url, run).check()
    put(url, "checkpoints/step-00000010.ckpt", b"half of it")
    assert restore(url, other, retry=RETRY) is None
    uploads = uploading(url, other)
    uploads.check()
    upload(uploads, save(other, 10))
    assert "checkpoints/step-00000010.ckpt.sha256" in objects(url)


def test_a_restore_that_was_killed_is_done_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    upload(uploading(url, run), save(run, 10))

    def killed(*args: Any, **settings: Any) -> None:
        complete(*args, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lumos_pl.checkpoints.remote.complete", killed)
        restore(url, other, retry=RETRY)
    restore(url, other, retry=RETRY)
    assert (other / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    uploads = uploading(url, other)
    uploads.check()
    upload(uploads, save(other, 20))
    assert "checkpoints/step-00000020.ckpt.sha256" in objects(url)


@pytest.mark.seconds
def test_a_line_that_came_after_the_upload_stays(url: str, tmp_path: Path) -> None:
    run, other = tmp_path / "here" / "exp" / "one", tmp_path / "there" / "exp" / "one"
    upload(uploading(url, run), save(run, 10))
    assert restore(url, other, retry=RETRY) is not None
    with (other / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 10}\n')
    shutil.rmtree(other / "checkpoints")
    assert restore(url, other, retry=RETRY) is not None
    assert len((other / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_store_that_removes_nothing_has_the_checkpoints_all_the_same(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before(name: str) -> None:
        if name == "rm_file":
            raise PermissionError("it may not be removed")

    put_between(monkeypatch, before)
    run = tmp_path / "exp" / "one"
    uploads = uploading(url, run, keep=1)
    upload(uploads, save(run, 10), save(run, 20), save(run, 30))
    digests = {name for name in objects(url) if name.endswith(".sha256")}
    assert digests == {f"checkpoints/step-000000{step}.ckpt.sha256" for step in (10, 20, 30)}
