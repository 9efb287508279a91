"""`lumos status`."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.commands.options import Add
from lumos_pl.errors import ConfigError


def add_commands(add: Add) -> None:
    one = add(
        "status", _status, "the state of a run, while it runs or after: step, speed, saves, end; reads files only"
    )
    one.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="runs/EXP/NAME, or several for a table")
    one.add_argument("--json", action="store_true", help="the same, and more, as one line of JSON")


def _status(options: argparse.Namespace) -> int:
    from experiments.status.status import read_status, runs_among
    from experiments.status.table import print_status, print_statuses, to_json
    from lumos_pl.checkpoints.named import resolve_latest

    folders = [resolve_latest(run, holding="config.yaml") for run in options.runs]
    runs = list(runs_among(folders)) if len(folders) > 1 else folders
    if not runs:
        raise ConfigError("none of them is a run's folder", got=f"{len(folders)} paths", fix="give runs/EXP/NAME")
    statuses = [read_status(run) for run in runs]
    if options.json:
        print(to_json(statuses if len(folders) > 1 else statuses[0]))
    elif len(folders) > 1:
        print_statuses(statuses)
    else:
        print_status(statuses[0])
    return 0
