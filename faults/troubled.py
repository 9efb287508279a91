"""`lumos` on a machine whose storage fails now and then, and whose steps take their time: python -m faults.troubled ...

What fails is written in the file that FAULTS_TROUBLES names, as JSON, and may change at any time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from callbacks.jsonl_logger import JsonlLogger
from experiments import cli
from faults.runs import at_each_loss, log_samples
from faults.storage import Storage, Trouble
from lumos_pl.machinery.atomic_file import write_atomically

TROUBLES, SAMPLES, PAUSE = "FAULTS_TROUBLES", "FAULTS_SAMPLES", "FAULTS_PAUSE_S"  # of the environment
PLANTED = "FAULTS_PLANTED"  # of the environment: a bug that the campaign must see
OFTEN_S = 0.1
_REWIND = JsonlLogger.rewind


def tell(file: Path, troubles: list[Trouble]) -> None:
    """Let these be the troubles from now on."""
    made = [{name: value for name, value in asdict(one).items() if name != "met"} for one in troubles]
    for one in made:
        one["since"] = time.monotonic()  # also for those that the command is started in later
    write_atomically(file, json.dumps(made))


def _watch(file: Path, troubles: list[Trouble]) -> None:
    seen = ""
    while True:
        if file.exists() and (text := file.read_text()) != seen:
            seen = text
            troubles[:] = [Trouble(**{**one, "operations": tuple(one["operations"])}) for one in json.loads(text)]
        time.sleep(OFTEN_S)


def _repeat(logger: JsonlLogger, step: int) -> None:
    """Have the lines that stay stand there twice."""
    _REWIND(logger, step)
    if logger.path.exists():
        logger.path.write_bytes(2 * logger.path.read_bytes())


def main() -> int:
    """The command, in its circumstances."""
    troubles: list[Trouble] = []
    Storage(troubles).install()
    threading.Thread(target=_watch, args=(Path(os.environ[TROUBLES]), troubles), daemon=True).start()
    pause_s = float(os.environ.get(PAUSE, "0"))
    at_each_loss(lambda *_: time.sleep(pause_s))
    log_samples(Path(os.environ[SAMPLES]))
    if PLANTED in os.environ:
        JsonlLogger.rewind = _repeat  # type: ignore[method-assign, assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
