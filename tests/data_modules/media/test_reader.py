"""The child decodes what the parent would, and no file takes the parent with it."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.media.decode import decode_media
from data_modules.media.messages import MessageError, read_message, write_message
from data_modules.media.reader import MediaReader
from lumos_pl.errors import DataError, LumosError
from tests.data_modules.media.files import request, write_flat
from tests.refusals import refused


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_flat(tmp_path / "a.mp4", 24)


class Child:
    """One that is ready, gives this answer and ends."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.stdin, self.stdout = io.BytesIO(), io.BytesIO()
        for message in {}, answer:
            write_message(self.stdout, message)
        self.stdout.seek(0)

    def kill(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        return 7


@pytest.fixture
def reader() -> Iterator[MediaReader]:
    with MediaReader() as reader:
        yield reader


def child_pid(reader: MediaReader) -> int:
    """The process that decodes for this one."""
    own = os.getpid()
    children = map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())
    (child,) = (pid for pid in children if b"decode_child" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return child


def test_reads_what_decoding_here_gives(reader: MediaReader, video: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "b.png")
    sizes = ((64, 64), (96, 64))
    for path in (video, tmp_path / "b.png"):
        ours, theirs = decode_media(path, request(sizes=sizes)), reader.read(path, request(sizes=sizes))
        assert np.array_equal(ours.frames, theirs.frames)
        assert (ours.fps, ours.is_image) == (theirs.fps, theirs.is_image)
        assert theirs.frames.flags.writeable


def test_one_child_serves_all_files_and_errors_keep_their_fields(reader: MediaReader, video: Path) -> None:
    reader.read(video, request())
    pid = child_pid(reader)
    odd = video.with_name("ö \udcff\n.mp4")
    odd.write_bytes(b"nothing")
    with pytest.raises(DataError) as ours:
        decode_media(odd, request())
    with pytest.raises(DataError) as theirs:
        reader.read(odd, request())
    for name in ("what", "file", "where", "got", "expected"):
        assert getattr(theirs.value, name) == getattr(ours.value, name)
    assert len(reader.read(video, request()).frames) == 24
    reader.look(video, request())
    reader.look(video, request())
    assert child_pid(reader) == pid


@pytest.mark.seconds
def test_a_file_that_takes_too_long_is_given_up(video: Path) -> None:
    with MediaReader(time_limit_s=0.3) as reader:
        reader.read(video, request())
        pid = child_pid(reader)
        os.kill(pid, signal.SIGSTOP)  # a child that does not get on
        with refused(DataError, file="a.mp4", expected="at most 0.3 s"):
            reader.read(video, request())
        assert len(reader.read(video, request()).frames) == 24
        assert child_pid(reader) != pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.seconds
def test_a_child_that_crashes_is_named_and_replaced(reader: MediaReader, video: Path) -> None:
    reader.read(video, request())
    pid = child_pid(reader)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with refused(DataError, file="a.mp4", got="SIGKILL (the end of the pipe)"):
        reader.read(video, request())
    assert len(reader.read(video, request()).frames) == 24


@pytest.mark.seconds
def test_an_interrupted_answer_is_not_taken_for_the_next(reader: MediaReader, video: Path) -> None:
    reader.read(video, request())
    # A signal of our own: SIGINT is ignored where the tests run in the background of a script.
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    pid = child_pid(reader)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
    with pytest.raises(KeyboardInterrupt):
        reader.read(video, request())
    signal.signal(signal.SIGUSR1, before)
    other = write_flat(video.with_name("b.mp4"), 10)
    assert len(reader.read(other, request()).frames) == 10
    assert child_pid(reader) != pid


def test_a_child_that_died_between_files_harms_none(reader: MediaReader, video: Path) -> None:
    reader.read(video, request())
    child = child_pid(reader)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert len(reader.read(video, request()).frames) == 24


@pytest.mark.seconds
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not kept elsewhere")
def test_a_file_that_needs_too_much_memory_is_given_up(tmp_path: Path, video: Path) -> None:
    Image.new("1", (12_000, 8_000)).save(tmp_path / "large.png")
    with MediaReader(memory_limit_bytes=600 << 20) as reader:
        with refused(DataError, file="large.png", expected="at most 600 MiB"):
            reader.read(tmp_path / "large.png", request())
        assert len(reader.read(video, request()).frames) == 24
    with MediaReader(memory_limit_bytes=16 << 20) as reader, refused(LumosError, got="exit status 1"):
        reader.read(video, request())


@pytest.mark.seconds
@pytest.mark.skipif(sys.platform != "linux", reason="waits for a process that is no child by its pidfd")
def test_the_child_ends_with_its_parent_even_in_the_middle_of_a_file(video: Path) -> None:
    code = """if True:
        import os, pathlib, signal, sys
        from data_modules.media.reader import MediaReader
        from tests.data_modules.media.files import request
        reader, video = MediaReader(), pathlib.Path(sys.argv[1])
        reader.read(video, request())
        assert not {"torch", "lightning"} & set(sys.modules)
        print(reader._child._process.pid, flush=True)
        sys.stdin.readline()
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # ends this process without any clearing up
        reader.read(video, request(fps=10**9, max_frames=10**9))  # takes minutes
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(video)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.wait(20) == -signal.SIGALRM
    ended, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert ended


CLIP = {"frames": 2, "height": 64, "width": 64, "is_image": False, "start": 0.0}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {**CLIP, "frames": 10**12},
        {**CLIP, "frames": 0},
        {**CLIP, "frames": "2"},
        {**CLIP, "width": 128},
        {**CLIP, "height": [64]},
        {**CLIP, "is_image": True},
        {**CLIP, "is_image": 1},
        {**CLIP, "start": -1.0},
        {**CLIP, "start": 1},
        {"rests": 0},  # and no clip
        {"rests": -1},
        CLIP,  # and no data
        {"error": "text"},
        {"error": {"what": 3}},
    ],
)
def test_what_a_child_may_not_say(answer: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: Child(answer))
    with MediaReader() as reader, refused(DataError, file="a.mp4") as caught:
        reader.read(Path("a.mp4"), request())
    assert caught.value.what == "the decoder crashed"


def test_an_error_of_the_child_is_shown_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subprocess, "Popen", lambda *_, **__: Child({"error": {"what": "\x1b[2Jwrong", "got": "x" * 5000}})
    )
    with MediaReader() as reader, refused(DataError, file="a.mp4", got="x" * 1000) as caught:
        reader.read(Path("a.mp4"), request())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"", "end of the pipe"),
        (b"\0\0\0\x02{", "end of the pipe"),
        (b"\xff\xff\xff\xff", "a message of 4294967295 bytes"),
        (b"\0\0\0\x02[]", "no object"),
        (b"\0\0\0\x01\xff", "no JSON"),
        (b"\0\1\0\0" + b"[" * 65536, "no JSON"),
    ],
)
def test_messages_that_are_none(sent: bytes, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        read_message(io.BytesIO(sent))


def test_the_child_imports_neither_torch_nor_lightning() -> None:
    code = "import sys, data_modules.media.decode_child; print({'torch', 'lightning', 'webdataset'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root, check=True)
    assert done.stdout == "set()\n"


def test_what_the_system_says_of_a_file_is_told_apart_from_damage(reader: MediaReader, tmp_path: Path) -> None:
    """The storage's trouble may pass, so it comes with the system's number; a damaged file has none."""
    with refused(DataError, file="nowhere.mp4") as caught:
        reader.read(tmp_path / "nowhere.mp4", request())
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with refused(DataError, file="damaged.png") as caught:
        reader.read(tmp_path / "damaged.png", request())
    assert not isinstance(caught.value.__cause__, OSError)
