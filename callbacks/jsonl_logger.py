"""Metrics as JSON lines: for scripts, as TensorBoard is for people."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field

from callbacks.logs_once import LogsOnce
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import Number, parse_json, wrong
from lumos_pl.machinery.own_files import ever_written, keep_aside, note, open_to_append
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.settings.plain import read_value

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Record = dict[str, Integer | Number | Literal["nan", "inf", "-inf"]]  # what a line holds, including `step`


class JsonlLogger(LogsOnce):
    """Appends one line `{"step": 19, "loss/train": 2.31, ..}` per logging, complete on disk at once.

    What the storage refuses is kept and written with the next line; `sync` raises if it still cannot be written.

    `step` is the index of the optimizer step, from 0, as in TensorBoard. Non-finite values are the strings "nan",
    "inf" and "-inf", because JSON has no such numbers; `float()` reads them.

    Args:
        path: the file. Its folder is created, and its lines are kept; a file that is not ours is kept aside.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(read_value(path, str | Path, "path"))
        self._written: tuple[int, ...] | None = None  # the file as we left it: someone may have changed it since
        self._unwritten: list[bytes] = []

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: a run's settings are in its config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, "Lightning gives a step with every logging"
        if not self.unlogged(metrics, step):
            return
        self._unwritten.append(_line({"step": step} | {key: _json_number(value) for key, value in metrics.items()}))
        with self.outlived(f"{self.path} lacks its last lines"):
            self._write()

    def _write(self, *, durably: bool = False) -> None:
        """Append all lines not yet written, or none. The file is not held open, so a replacement is noticed.

        Raises:
            FileError: the storage refuses them.
        """
        with naming(self.path):
            if self._written is None or self._written != _identity(self.path):
                self._keep(lambda record: True)
                there = set(read_regular(self.path).splitlines(keepends=True)) if self.path.is_file() else set()
                self._unwritten = [line for line in self._unwritten if line not in there]
            left, self._written = b"".join(self._unwritten), None  # after a failure the next call rereads the file
            with open_to_append(self.path) as file:
                while left:
                    left = left[os.write(file.fileno(), left) :]
                if durably:
                    os.fsync(file.fileno())
            self._written = _identity(self.path)
            self._unwritten.clear()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; drops the lines of later steps, and a line that a kill has torn."""
        self.finalize("resumed")
        with naming(self.path):
            self._keep(lambda record: int(record["step"]) < step)
        super().rewind(step)

    def logged_at(self, step: int) -> set[str]:
        records = parse_records(self.path)[0] if os.path.lexists(self.path) else []
        return {name for record in records if record["step"] == step for name in record}

    @rank_zero_only
    def sync(self) -> None:
        if self._unwritten or self._written is not None:
            self._write(durably=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        try:
            if self._unwritten and status == "success":  # a failed run does those steps again
                self._write()
        finally:
            self._written = None

    def _keep(self, wanted: Callable[[Record], bool]) -> None:
        """Keep only the wanted records in the file, atomically: a kill leaves either the old lines or the new.

        If it holds anything but our own lines and one torn by a kill, the whole file is first kept aside.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = self.path.is_file() and not self.path.is_symlink()
        content = read_regular(self.path) if plain else b""
        lines = content.splitlines(keepends=True)
        records = [_record(line) for line in lines]
        kept = b"".join(line for line, record in zip(lines, records, strict=True) if record and wanted(record))
        if kept and not kept.endswith(b"\n"):
            kept += b"\n"
        torn = bool(lines) and not lines[-1].endswith(b"\n")
        if ever_written(self.path) and all(records[:-1] if torn else records):
            if plain and kept == content:
                return
            note(self.path, hashlib.sha256(content).hexdigest())  # it is ours, as it is now
        elif os.path.lexists(self.path):
            odd = parse_records(self.path)[1] if plain else None
            keep_aside(self.path, **({"why": str(odd)} if odd else {}))
        write_atomically(self.path, kept)


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl; a last line that a kill has torn is skipped.

    Raises:
        DataError: the first line that is not a record.
    """
    records, odd = parse_records(path)
    if odd is not None:
        raise odd
    return records


def last_figure(path: Path, name: str) -> float | None:
    """The figure of this name that was logged last; None if there is none, or no readable file."""
    try:
        records = parse_records(path)[0] if path.is_file() else []
    except (DataError, OSError):
        return None
    return next((float(record[name]) for record in reversed(records) if name in record), None)


def parse_records(path: Path) -> tuple[list[Record], DataError | None]:
    """The records of a metrics.jsonl, and an error for the first line that is not one; a torn last line is skipped."""
    *lines, last = read_regular(path).split(b"\n")
    records, odd = [], None
    for number, line in enumerate([*lines, last], start=1):
        try:
            records.append(parse_record(line))
        except DataError as error:
            if odd is None and number <= len(lines):
                where = ": ".join(filter(None, (f"line {number}", error.where)))
                odd = DataError(**error.parts | {"file": path, "where": where})
    return records, odd


def parse_record(line: bytes) -> Record:
    """The record in one line.

    Raises:
        DataError: the line is not a record.
    """
    record = parse_json(line, Record)
    if type(step := record.get("step")) is not int or step < 0:
        raise wrong("step", step, "a whole number from 0")
    return record


def _identity(file: Path) -> tuple[int, ...] | None:
    """Identifies the file; includes its size, for a new file may get the inode number of a deleted one."""
    try:
        found = os.lstat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size


def _record(line: bytes) -> Record | None:
    with suppress(DataError):
        return parse_record(line)
    return None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _json_number(value: Any) -> float | str:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else str(float(number))
