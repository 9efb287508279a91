"""`make bench-gpu`: what only a GPU can tell, in the order of value, within minutes.

python -m bench.gpu [--minutes 7] [--cases PREFIX ...] [--out gpu.json] [--again] [--toy]
python -m bench.gpu --list
python -m bench.gpu --table gpu.json

One process measures one case after another; one that hangs is killed at its limit, one that fails is told in a line,
and the others go on. `gpu.json` is written after every case: a second call goes on where the first one stopped, however
it did. `--table` makes Markdown of it, beside what was estimated and what is wanted. Without a GPU everything runs at
toy size, which shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.gpu import BEGUN
from bench.gpu.cases import cases
from bench.gpu.driver import NoWorkerError, Workers
from bench.gpu.record import Record
from bench.gpu.run import measure
from bench.gpu.table import markdown
from lumos_pl.machinery.json_file import read_json

MARGIN_S = 3.0  # of the time that is given, to write and to end


def main(arguments: Sequence[str] | None = None, *, begun: float | None = None) -> int:
    begun = time.monotonic() if begun is None else begun
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--minutes", type=float, default=7.0, help="for everything, with the start; default 7")
    parser.add_argument("--cases", nargs="+", metavar="PREFIX", help="those whose names begin so, see --list")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="written after every case, and gone on with")
    parser.add_argument("--again", action="store_true", help="also what the file has, measured, failed or exceeded")
    parser.add_argument("--toy", action="store_true", help="toy sizes, as without a GPU: shows that everything runs")
    parser.add_argument("--list", action="store_true", help="the cases with their limits")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a file of an earlier call as Markdown")
    options = parser.parse_args(arguments)
    if options.list:
        for case in cases(toy=False):
            print(f"{case.name:20} {case.limit_s:4.0f} s  {case.about}")
        return 0
    if options.table:
        print(markdown(read_json(options.table, dict[str, Any]), cases(toy=False)))
        return 0
    command = "python -m bench.gpu " + " ".join(sys.argv[1:] if arguments is None else arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    deadline = begun + 60 * options.minutes - MARGIN_S
    with Workers(options.out.with_suffix(".log")) as workers:
        try:
            workers.start(deadline - time.monotonic())
            toy = options.toy or workers.machine["device"] == "cpu"
            listed = cases(toy=toy)
            record = Record(options.out, workers.machine, toy=toy, command=command.strip(), order=listed)
            chosen = [case for case in listed if case.name.startswith(tuple(options.cases or [""]))]
            todo = [case for case in chosen if options.again or not record.has(case)]
            measure(todo, workers, record, deadline=deadline, console=console)
        except NoWorkerError as error:
            console.print(str(error))
            return 1
    if len(todo) < len(chosen):
        console.print(f"{len(chosen) - len(todo)} cases were there already (--again measures them once more)")
    if record.not_begun:
        console.print(f"not begun for lack of time: {', '.join(record.not_begun)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(begun=BEGUN))
