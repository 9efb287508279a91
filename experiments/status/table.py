"""How `lumos status` prints: tables for people, plain lines for pipes, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from experiments.status.status import Figure, SourceStatus, Status
from experiments.units import size, span
from lumos_pl.machinery.counted import counted

COLUMNS = "run", "state", "step", "loss", "s/step", "saved", "next save", "ends", "restarts"


def to_json(told: Status | Sequence[Status]) -> str:
    """An object for each run."""
    return json.dumps(asdict(told) if isinstance(told, Status) else [asdict(status) for status in told])


def print_status(status: Status) -> None:
    """All of one run."""
    lines = [(name, text) for name, text in _lines(status) if text]
    if not sys.stdout.isatty():
        for name, text in lines:
            print(f"{name}\t{text}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=status.run, title_justify="left")
    for name, text in lines:
        table.add_row(name, Text(text))
    Console(highlight=False).print(table)


def print_statuses(statuses: Sequence[Status]) -> None:
    """Several runs, a line each."""
    if not sys.stdout.isatty():
        for row in (COLUMNS, *map(_row, statuses)):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*COLUMNS)
    for status in statuses:
        table.add_row(*map(Text, _row(status)))
    Console(highlight=False).print(table)


def _lines(status: Status) -> list[tuple[str, str | None]]:
    saved, running = status.saved, status.state == "running"
    undone = "would be done again if it were killed now" if running else "are done again when it is resumed"
    return [
        ("run", status.run),
        ("state", f"{status.state}: {status.said}"),
        ("step", _steps(status) + (f", logged {span(status.age)} ago" if status.age is not None else "")),
        ("losses", ", ".join(f"{name} {_at(figure)}" for name, figure in status.losses.items())),
        ("sources", ", ".join(f"{name} ({_source(source)})" for name, source in status.sources.items())),
        ("speed", _speed(status)),
        ("ends", None if status.ends_in is None else f"in {span(status.ends_in)}, {_clock(status.ends_in)}"),
        ("saved", None if saved is None else f"step {saved.step:,}, {span(saved.age)} ago, {size(saved.n_bytes)}"),
        ("saving", "a checkpoint is being written" if status.is_saving else None),
        ("next save", _next_save(status)),
        ("to do again", None if status.state == "finished" else f"{counted(status.undone, 'step')} {undone}"),
        ("restarts", None if status.restarts is None else f"{status.restarts:,}"),
        ("left out", f"{counted(status.left_out, 'sample')}, see left_out.jsonl" if status.left_out else None),
        ("disk", _disk(status)),
    ]


def _at(figure: Figure) -> str:
    step, value = figure
    return f"{_value(value)} at {step}"


def _source(source: SourceStatus) -> str:
    steps = [] if source.steps is None else [counted(source.steps, "step")]
    return ", ".join([*steps, "no loss yet" if source.loss is None else _at(source.loss)])


def _row(status: Status) -> tuple[str, ...]:
    loss = status.losses.get("loss/train")
    return (
        status.run,
        status.state,
        _steps(status),
        _value(loss[1]) if loss else "",
        f"{status.seconds_per_step:.3g}" if status.seconds_per_step else "",
        f"{status.saved.step:,}" if status.saved else "",
        f"{status.next_save:,}" if status.next_save is not None else "",
        _clock(status.ends_in) if status.ends_in is not None else "",
        "" if status.restarts is None else str(status.restarts),
    )


def _steps(status: Status) -> str:
    return f"{status.step:,}" + (f" of {status.max_steps:,}" if status.max_steps is not None else "")


def _speed(status: Status) -> str | None:
    rates = []
    if status.seconds_per_step:
        rates.append(f"{status.seconds_per_step:.3g} s a step")
    if status.tokens_per_second:
        rates.append(f"{status.tokens_per_second:,.0f} tokens/s")
    return ", ".join(rates) or None


def _next_save(status: Status) -> str | None:
    if status.next_save is None:
        return None
    due = f", in {span(status.next_save_in)}" if status.next_save_in is not None else ""
    return f"after step {status.next_save:,}{due}"


def _disk(status: Status) -> str:
    room = f", room for {status.saves_left:,} more checkpoints" if status.saves_left is not None else ""
    return f"{size(status.disk_free)} free{room}"


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    """The local time so many seconds from now."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
