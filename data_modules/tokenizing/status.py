"""How far the work at a list is: in one folder, or in those of all its parts, on whatever machines these are."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import with_config
from typing_extensions import TypedDict

from data_modules.tokenizing.parts import STATE_FILE, Part
from data_modules.tokenizing.state import QUARANTINE_FILE, RATE_FILE, State
from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import Count, Number, read_json
from lumos_pl.machinery.regular_file import open_regular

_MOST_LINE_BYTES = 1 << 20


@with_config(extra="forbid")
class Rate(TypedDict):
    """What RATE_FILE holds, written anew every so often while the work goes on.

    `done` of `total` items; `reasons`: how many gave no sample, by why; `per_s`: items a second; `time`: unix seconds.
    """

    done: Count
    total: Count
    reasons: dict[str, Count]
    per_s: Number
    time: Number


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """
    Args:
        name: the part's folder, or that of the whole.
        total: items; None: not known before it is begun.
        done: of these, with those that gave no sample.
        reasons: how many gave none, by why.
        per_s: items a second, when it was last seen; None: it was never.
        silent_s: seconds since then; None: it is done, or not begun.
    """

    name: str
    total: int | None = None
    done: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    per_s: float | None = None
    silent_s: float | None = None
    is_complete: bool = False

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    @property
    def to_do(self) -> int | None:
        return None if self.total is None else self.total - self.done

    @property
    def left_s(self) -> float | None:
        """Seconds that are left at its pace."""
        if self.is_complete:
            return 0.0
        return self.to_do / self.per_s if self.to_do is not None and self.per_s else None


def short(reason: str) -> str:
    """A reason without what differs from file to file."""
    return reason.partition(" | ")[0]


def reasons_of(quarantine: Path) -> Counter[str]:
    """How many lines of a quarantine.jsonl have which reason, in short."""
    found = Counter[str]()
    if quarantine.is_file():
        with open_regular(quarantine, at_most=None) as stream:
            while line := stream.readline(_MOST_LINE_BYTES):
                found[short(json.loads(line)["reason"])] += 1
    return found


def status_of(out: Path, count: int | None = None) -> list[PartStatus]:
    """How far every part is that `out` was begun with, in order; one that is the whole where it has no parts.

    Args:
        count: of the parts, where none is begun; None: it is one whole.
    Raises:
        DataError: a file of ours is not what it should be.
    """
    if (out / STATE_FILE).is_file():
        recorded = read_json(out / STATE_FILE, State)["settings"].get("parts")
        count = recorded if isinstance(recorded, int) else None
    if count is None:
        return [_folder_status(out, out.name)]
    names = [Part(index=index, count=count).folder for index in range(count)]
    return [_folder_status(out / name, name) for name in names]


def _folder_status(folder: Path, name: str) -> PartStatus:
    if not (folder / STATE_FILE).is_file():
        return PartStatus(name=name)
    state = read_json(folder / STATE_FILE, State)
    total = state["settings"].get("n_media")
    if total is not None and not (isinstance(total, int) and total >= 0):
        raise DataError("wrong field", file=folder / STATE_FILE, where="settings.n_media", got=repr(total))
    if state["complete"] is not None:
        reasons = reasons_of(folder / QUARANTINE_FILE)
        return PartStatus(name=name, total=total, done=total or 0, reasons=reasons, is_complete=True)
    try:
        rate = read_json(folder / RATE_FILE, Rate)
    except DataError:  # it has just begun, or has just ended
        return PartStatus(name=name, total=total)
    return PartStatus(
        name=name,
        total=rate["total"],
        done=rate["done"],
        reasons=rate["reasons"],
        per_s=rate["per_s"],
        silent_s=max(0.0, time.time() - rate["time"]),
    )


def with_totals(parts: Sequence[PartStatus], numbers: NDArray[np.uint64]) -> list[PartStatus]:
    """Where a part is not begun, how many items of the list are its own."""
    counts = np.bincount((numbers % np.uint64(len(parts))).astype(np.int64), minlength=len(parts)).tolist()
    return [
        replace(part, total=total) if part.total is None else part for part, total in zip(parts, counts, strict=True)
    ]


def table(parts: Sequence[PartStatus]) -> list[str]:
    """Lines for people: a part each, all of them together, and why items gave no sample."""
    whole = PartStatus(
        name="all",
        total=sum(part.total or 0 for part in parts),
        done=sum(part.done for part in parts),
        reasons=sum((Counter(part.reasons) for part in parts), Counter()),
        per_s=sum(part.per_s or 0 for part in parts if not part.is_complete),
        is_complete=all(part.is_complete for part in parts),
    )
    head = ("", "taken", "quarantined", "to do", "clips/s", "hours left", "")
    rows = [head, *(_row(part) for part in parts), *([_row(whole)] if len(parts) > 1 else [])]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place in (0, 6) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return lines + [f"  {n:,} {reason}" for reason, n in Counter(whole.reasons).most_common(8)]


def _row(part: PartStatus) -> tuple[str, ...]:
    if part.is_complete:
        word = "done"
    elif part.silent_s is not None:
        word = f"last seen {part.silent_s:.0f} s ago"
    else:
        word = "" if part.done else "not begun"
    hours = "-" if part.left_s is None else f"{part.left_s / 3600:.1f}"
    pace = "-" if part.is_complete or not part.per_s else f"{part.per_s:.1f}"
    to_do = "-" if part.to_do is None else f"{part.to_do:,}"
    return part.name, f"{part.done - part.quarantined:,}", f"{part.quarantined:,}", to_do, pace, hours, word
