"""Gives cases to a worker within their limits, and starts a fresh one where that one died or had to be killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.gpu.case import Case

ROOT = Path(__file__).parents[2]
DESCRIBE = "bench.gpu.card:describe"
START_LIMIT_S = 120.0  # for torch to be imported and the GPU to answer, from a cold disk
LEAST_SHARE = 0.5  # of a case's limit: with less time left it is not begun

Answer = dict[str, Any]


class OverLimitError(Exception):
    """The worker was killed at a limit."""


class WorkerDiedError(Exception):
    """The worker died: of a segmentation fault, say."""


class NoWorkerError(Exception):
    """No worker comes so far as to describe its device."""


class Workers:
    """One worker at a time, started when it is needed.

    Args:
        log: where what they print goes.
        describe: `module:function` that returns what is known of the device; asked of every fresh worker.
    """

    def __init__(self, log: Path, describe: str = DESCRIBE) -> None:
        self._log, self._describe = log, describe
        self._process: subprocess.Popen[bytes] | None = None
        self.machine: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end()

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Have a worker that answers; what it says of its device is `machine`.

        Raises:
            NoWorkerError: there is none within the limit.
        """
        if self._process is not None:
            return
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # so that it can be killed with all that it started
            )
        try:
            described = self.ask(self._describe, {}, limit_s)
        except (OverLimitError, WorkerDiedError) as error:
            raise NoWorkerError(f"the worker does not start: {error}; see {self._log}") from error
        if "failed" in described:
            raise NoWorkerError(f"the device does not answer: {described['failed']}; see {self._log}")
        self.machine = described["figures"]

    def ask(self, measure: str, settings: dict[str, Any], limit_s: float) -> Answer:
        """The worker's answer.

        Raises:
            OverLimitError, WorkerDiedError: it gave none; there is no worker then.
        """
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # of a dead one: the end of its answers tells
            self._process.stdin.write((json.dumps({"measure": measure, "settings": settings}) + "\n").encode())
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], max(0.0, limit_s))[0]:
            self.end()
            raise OverLimitError(f"exceeded its {limit_s:.3g} s")
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            status = self.end()
            raise WorkerDiedError("the worker died: " + (signal.Signals(-status).name if status < 0 else str(status)))
        answered: Answer = json.loads(line)
        if not answered.pop("fit"):
            self.end()
        return answered

    def end(self) -> int:
        """Kill the worker, if there is one, with all that it started; returns the status with which it ended."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        for stream in process.stdin, process.stdout:
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        return status


def run_case(case: Case, workers: Workers, deadline: float) -> Answer | None:
    """What came of a case: its state, and its figures or the reason why there are none.

        measured    figures
        failed      it raised, or its worker died
        exceeded    it was killed at its limit
        cut short   it was killed because all time was used up

    Args:
        deadline: of everything, by `time.monotonic`.
    Returns:
        None if it was not begun, because too little time was left.
    Raises:
        NoWorkerError: there is none to be had.
    """
    needed = LEAST_SHARE * case.limit_s
    if deadline - time.monotonic() < needed:
        return None
    try:
        workers.start(min(START_LIMIT_S, deadline - time.monotonic()))
    except NoWorkerError:
        if time.monotonic() >= deadline:
            return None
        raise
    begun = time.monotonic()
    if deadline - begun < needed:
        return None
    limit_s = min(case.limit_s, deadline - begun)
    try:
        answered = workers.ask(case.measure, dict(case.settings), limit_s)
        answered["state"] = "failed" if "failed" in answered else "measured"
    except OverLimitError as error:
        answered = {"state": "exceeded" if limit_s == case.limit_s else "cut short", "failed": str(error)}
    except WorkerDiedError as error:
        answered = {"state": "failed", "failed": str(error)}
    return answered | {"took_s": round(time.monotonic() - begun, 2)}
