"""Runs a study's cells, one after the other or some side by side, each in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from callbacks.jsonl_logger import parse_record
from experiments.study.cells import Cell
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import make_folder, naming
from lumos_pl.machinery.own_files import digest_of, keep_aside, note, remove_own
from lumos_pl.machinery.regular_file import open_regular

POLL_SECONDS = 1.0
EVALUATION_STEPS = 100  # an evaluation takes about as long as so many steps of a small model; for the time that is left
TAIL_BYTES = 4096


def run_cells(
    name: str,
    cells: Sequence[Cell],
    words: Sequence[str],
    *,
    jobs: int = 1,
    on_progress: Callable[[Cell, int, int], None],
    on_end: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Bring every cell to its end; one that fails is noted in its folder, and the next goes on.

    Args:
        name, words: the study's and its overrides, as they were given, for the cells' processes.
        jobs: how many run side by side; of several each has its share of the cores.
        on_end: called with each cell whose process has ended.
        on_progress: called about once a second with a cell at work, the work done and all the work, in steps.
    """
    total = sum(map(_work, cells))
    waiting, running = deque(cells), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                if not (cell := waiting.popleft()).is_done():
                    running.append(_Running(name, cell, words, threads=_threads(jobs)))
            if not running:
                break
            with suppress(subprocess.TimeoutExpired):
                running[0].child.wait(POLL_SECONDS)
            begun = {one.cell.name for one in running} | {cell.name for cell in waiting}
            done = sum(_done(cell) if cell.name in begun else _work(cell) for cell in cells)
            on_progress(running[0].cell, done, total)
            for one in [one for one in running if one.child.poll() is not None]:
                running.remove(one)
                one.end()
                on_end(one.cell)
    finally:  # told to stop: so are the cells, which save
        for one in running:
            one.child.terminate()
        for one in running:
            one.wait()


def _threads(jobs: int) -> int | None:
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


class _Running:
    """A cell's process.

    Args:
        threads: that it computes with; None: as many as it likes.
    """

    def __init__(self, name: str, cell: Cell, words: Sequence[str], *, threads: int | None) -> None:
        self.cell = cell
        command = [sys.executable, "-m", "experiments.study.cell", name, cell.name, *words]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        make_folder(cell.folder.path)
        if not remove_own(cell.log):
            keep_aside(cell.log)
        with naming(cell.log), cell.log.open("xb") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self) -> None:
        """Wait for its end, and take its log for ours."""
        self.child.communicate()
        if (digest := digest_of(self.cell.log)) is not None:
            note(self.cell.log, digest)

    def end(self) -> None:
        """Of one that ended by itself: note how."""
        self.wait()
        if self.child.returncode:
            self.cell.note_failure(self.child.returncode, _last_words(self.cell, self.child.returncode))
        else:
            remove_own(self.cell.failure)


def _last_words(cell: Cell, status: int) -> str:
    """What the cell's process said last: of an expected failure its line, of a crash the exception."""
    lines = cell.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return f"ended by signal {-status}: {said}" if status < 0 else said.removeprefix("lumos: ")


def _work(cell: Cell) -> int:
    return cell.config.trainer.max_steps + EVALUATION_STEPS * len(cell.evaluations)


def _done(cell: Cell) -> int:
    done = sum(evaluation.file.exists() for evaluation in cell.evaluations)
    return last_step(cell.folder.metrics) + EVALUATION_STEPS * done


def last_step(metrics: Path) -> int:
    """How many steps a run has logged; 0 before the first."""
    try:
        with open_regular(metrics) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except DataError:  # none yet; what is wrong with one is told where it is read whole
        return 0
    for line in reversed(lines):
        with suppress(DataError):  # cut at either end
            return int(parse_record(line)["step"]) + 1
    return 0


def slurm_script(name: str, cells: Sequence[Cell], overrides: Sequence[str]) -> str:
    """A job array of the cells that are not done, to be given to sbatch; the report is made afterwards."""
    todo = [cell for cell in cells if not cell.is_done()]
    command = shlex.join(["lumos", "study", name, *overrides])
    if not todo:
        raise ConfigError("nothing is left to run", where=name, fix=f"`{command}` writes the report")
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name=lumos-study --array=0-{len(todo) - 1}",
            f"cells=({' '.join(shlex.quote(cell.name) for cell in todo)})",
            f'{command} --only "${{cells[$SLURM_ARRAY_TASK_ID]}}"',
            f"# when all are done: {command} --report",
        ]
    )
