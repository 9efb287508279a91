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

from torch import Tensor

from callbacks.jsonl_logger import JsonlLogger
from experiments import cli
from faults.runs import log_samples
from faults.storage import Storage, Trouble
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.optimized_module import OptimizedModule

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


def _pause(seconds: float) -> None:
    minimized = OptimizedModule.loss_to_minimize

    def slow(module: OptimizedModule, loss: Tensor, *rest: object) -> Tensor:
        time.sleep(seconds)
        return minimized(module, loss, *rest)  # type: ignore[arg-type]

    OptimizedModule.loss_to_minimize = slow  # type: ignore[method-assign, assignment]


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
    _pause(float(os.environ.get(PAUSE, "0")))
    log_samples(Path(os.environ[SAMPLES]))
    if PLANTED in os.environ:
        JsonlLogger.rewind = _repeat  # type: ignore[method-assign, assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
