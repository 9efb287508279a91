"""The cases of one call, one after another."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from bench.gpu.case import Case
from bench.gpu.driver import Workers, run_case
from bench.gpu.record import Record
from bench.gpu.table import line
from lumos_pl.machinery.progress_bar import ProgressBar


def measure(todo: Sequence[Case], workers: Workers, record: Record, *, deadline: float, console: Console) -> None:
    """Measure, with a line for each case when it is done; the record is written after each.

    Args:
        deadline: of everything, by `time.monotonic`.
    """
    columns = TextColumn("{task.description}"), TimeElapsedColumn()
    with ProgressBar(*columns, console=console) as progress:
        for case in todo:
            task = progress.add_task(f"{case.name}, at most {case.limit_s:.0f} s")
            result = run_case(case, workers, deadline)
            progress.remove_task(task)
            if result is None:
                record.not_begun.append(case.name)
            else:
                record.keep(case, result)
                console.print(f"{case.name} | {line(result)}")
    record.write()
