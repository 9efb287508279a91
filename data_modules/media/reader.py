"""Decode files that may be damaged or hostile: in a child process with a time and a memory limit."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from data_modules.media.messages import MessageError, read_data, read_message, write_message
from data_modules.media.request import ClipRequest, DecodedClip, Facts, Several
from lumos_pl.errors import DataError, LumosError
from lumos_pl.machinery.parent_process import end_of

_START_LIMIT_S = 60.0
_EXIT_LIMIT_S = 1.0


class MediaReader:
    """Reads clips, one after the other, in one child process; a context manager.

    The child imports no torch, so that it starts in a fraction of a second. Nothing that it sends is
    unpickled or trusted: a file that takes it over can choose pixels and the words of an error, no
    more. It is replaced after a crash or an overrun limit, and it ends with this process, however
    that ends. A reader serves one thread of one process.

    Args:
        time_limit_s: for one file.
        memory_limit_bytes: of the child's address space, where the system can limit that.
    """

    def __init__(self, *, time_limit_s: float = 60, memory_limit_bytes: int = 4 << 30) -> None:
        self._time_limit_s, self._memory_limit_bytes = time_limit_s, memory_limit_bytes
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        """`decode_media` in the child.

        Raises:
            DataError: what `decode_media` finds, the limit that was overrun, or how the child ended.
        """
        starts = () if request.start is None else (request.start,)
        with closing(self.clips(path, request, Several(starts=starts))) as clips:
            clip, more = next(clips, None), next(clips, None)
        if clip is None or more is not None:
            raise DataError("the decoder crashed", file=path, got="not one clip")
        return clip

    def look(self, path: Path, request: ClipRequest) -> DecodedClip:
        """The first frame, with what the file says of itself; errors are those of `read`."""
        first = replace(request, max_frames=1, min_frames=1)
        with closing(self.clips(path, first, Several(starts=(0.0,), facts=True))) as clips:
            clip, more = next(clips, None), next(clips, None)
        if clip is None or clip.facts is None or more is not None:
            raise DataError("the decoder crashed", file=path, got="no facts")
        return clip

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
        """`decode_clips` in the child, which is at most one clip ahead; the limit of time is each clip's.

        Iterate to the end: a child that is left amid a file is replaced, which takes longer than most files.

        Raises:
            DataError: as of `read`.
        """
        if self._child is not None and self._child.ended():
            self._stop()
        if self._child is None:
            self._child = _Child(self._memory_limit_bytes)
        in_step = False
        try:
            with self._child.killed_after(self._time_limit_s) as overrun:
                self._child.ask(path, request, several)
            while True:
                with self._child.killed_after(self._time_limit_s) as overrun:
                    answer = self._child.answer(path, request)
                if overrun.is_set():
                    raise MessageError("killed amid the next answer")
                if isinstance(answer, DecodedClip):
                    yield answer
                    continue
                in_step = True
                if isinstance(answer, DataError):
                    raise answer
                return answer
        except (MessageError, OSError) as error:
            if overrun.is_set():
                limit = f"at most {self._time_limit_s:g} s"
                raise DataError("decoding takes too long", file=path, expected=limit) from None
            raise DataError("the decoder crashed", file=path, got=f"{self._child.status()} ({error})") from error
        finally:
            if not in_step:
                self._stop()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    """A running `decode_child`."""

    def __init__(self, memory_limit_bytes: int) -> None:
        # Not multiprocessing, whose children import the parent's main module, and with it torch.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "data_modules.media.decode_child", str(memory_limit_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            with self.killed_after(_START_LIMIT_S):
                read_message(self._answers)
        except MessageError:
            fix = "see its message above; a memory limit below 1 GiB may be too small to start"
            status = self.status()
            self.stop()
            raise LumosError("the decoder did not start", got=status, fix=fix) from None
        except BaseException:
            self.stop()
            raise

    def ended(self) -> bool:
        return self._process.poll() is not None

    @contextmanager
    def killed_after(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the child if the block takes longer; the event tells, after the block for good, whether it did."""
        overrun = threading.Event()

        def kill() -> None:
            overrun.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield overrun
        finally:
            timer.cancel()
            timer.join()

    def ask(self, path: Path, request: ClipRequest, several: Several) -> None:
        asked = {"path": str(path.absolute()), **asdict(request), "several": asdict(several)}
        write_message(self._requests, asked)

    def answer(self, path: Path, request: ClipRequest) -> DecodedClip | DataError | int:
        """A clip, the error or the number of rests; MessageError or OSError where the child does not keep to that."""
        answer = read_message(self._answers)
        if "error" in answer:
            return _told_error(answer["error"], path)
        if isinstance(rests := answer.get("rests"), int) and rests >= 0:
            return rests
        return self._receive(answer, request)

    def _receive(self, answer: dict[str, Any], request: ClipRequest) -> DecodedClip:
        names = "frames", "height", "width", "is_image", "start"
        n, height, width, is_image, start = (answer.get(name) for name in names)
        if not isinstance(n, int) or not isinstance(is_image, bool) or not isinstance(start, float) or start < 0:
            raise MessageError("a clip of another form")
        if not (n == 1 if is_image else request.min_frames <= n <= request.max_frames):
            raise MessageError("a clip of another length")
        size = next((size for size in request.sizes if size == (width, height)), None)
        if size is None:
            raise MessageError("a clip of another size")
        facts = _told_facts(answer.get("facts"))
        frames = np.empty((n, size[1], size[0], 3), np.uint8)
        read_data(self._answers, frames.data.cast("B"))
        fps = 1 if is_image else request.fps
        return DecodedClip(frames=frames, fps=fps, is_image=is_image, start=start, facts=facts)

    def status(self) -> str:
        """How the child ended, after its pipe has."""
        try:
            code = self._process.wait(_EXIT_LIMIT_S)
        except subprocess.TimeoutExpired:
            return "still running"
        return end_of(code)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in self._requests, self._answers:
            with suppress(OSError):  # a request that was never sent
                pipe.close()


def _told_facts(told: object) -> Facts | None:
    if told is None:
        return None
    kinds = {"width": int, "height": int, "seconds": float, "rate": float}
    if not isinstance(told, dict) or told.keys() != kinds.keys():
        raise MessageError("facts of another form")
    if not all(type(told[name]) is kind and 0 <= told[name] < 1e9 for name, kind in kinds.items()):
        raise MessageError("facts that cannot be")
    return Facts(**told)


def _told_error(fields: object, path: Path) -> DataError:
    """The error that the child tells, as printable text."""
    if not isinstance(fields, dict) or not isinstance(fields.get("what"), str):
        raise MessageError("an error of another form")
    texts = {name: fields.get(name) for name in ("what", "where", "got", "expected", "fix")}
    plain = {
        name: None if text is None else "".join(c if c.isprintable() else " " for c in str(text)[:1000])
        for name, text in texts.items()
    }
    what, number = plain.pop("what"), fields.get("errno")
    error = DataError(what or "", file=path, **plain)
    if isinstance(number, int) and number in errno.errorcode:
        error.__cause__ = OSError(number, os.strerror(number))  # by which trouble that passes is known
    return error
