"""`make faults`: every campaign, a line of figures each, and a JSON file with all that went wrong.

python -m faults [NAME ...] [--seed N] [--scale F] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from faults.campaign import Report, run_campaign
from faults.campaigns import CAMPAIGNS
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.progress_bar import ProgressBar


def main() -> int:
    """Run the chosen campaigns; the exit status is 1 if any promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=f"Campaigns: {', '.join(CAMPAIGNS)}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="those that begin so; default all")
    parser.add_argument("--seed", type=int, default=0, help="of all instances")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="that many times the usual instances")
    parser.add_argument(
        "--only", type=int, metavar="N", help="instance N of the campaign alone, as the JSON numbers them"
    )
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    options = parser.parse_args()
    names = [name for name in CAMPAIGNS if not options.names or name.startswith(tuple(options.names))]
    if not names:
        parser.error(f"no such campaign: {' '.join(options.names)}")
    torch.set_num_threads(1)  # before anything forks
    warnings.filterwarnings("ignore", module="torch")  # of odd pickles and few cores, which is what is tried here
    console = Console(soft_wrap=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    reports: list[Report] = []
    for name in names:
        campaign = CAMPAIGNS[name]
        instances = max(1, round(campaign.instances * options.scale))
        # Without its thread: some campaigns fork.
        with ProgressBar(*columns, console=console, auto_refresh=False) as progress:
            task = progress.add_task(name, total=instances)
            report = run_campaign(
                campaign,
                seed=options.seed,
                instances=instances,
                only=options.only,
                on_progress=partial(_advance, progress, task),
            )
        console.print(report.line, markup=False)
        reports.append(report)
    content = {"seed": options.seed, "campaigns": [asdict(report) for report in reports]}
    write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    return 1 if any(report.missed for report in reports) else 0


def _advance(progress: ProgressBar, task: TaskID) -> None:
    progress.advance(task)
    progress.refresh()


if __name__ == "__main__":
    sys.exit(main())
