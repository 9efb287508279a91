"""Metrics as JSON lines: what a script reads where a person opens TensorBoard."""

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
Record = dict[str, Integer | Number | Literal["nan", "inf", "-inf"]]  # what a line holds, `step` among it


class JsonlLogger(LogsOnce):
    """Appends one line `{"step": 19, "loss/train": 2.31, ..}` per logging, complete on disk at once.

    What the storage refuses is kept, and written with the next line; `sync` raises where it still cannot be.

    `step` is the index of the optimizer step, from 0, as in TensorBoard. Values that are not finite
    stand as the strings "nan", "inf" and "-inf": JSON has no such numbers, and `float()` reads them.

    Args:
        path: the file; its folder is made, its lines are kept. A file of another's is kept aside.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(read_value(path, str | Path, "path"))
        self._written: tuple[int, ...] | None = None  # the file as it was left: another may have been at it since
        self._unwritten: list[bytes] = []

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run's settings stand in its config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, "Lightning gives a step with every logging"
        if not self.unlogged(metrics, step):
            return
        self._unwritten.append(_line({"step": step} | {key: _json_number(value) for key, value in metrics.items()}))
        with self.outlived(f"{self.path} lacks its last lines"):
            self._write()

    def _write(self, *, durably: bool = False) -> None:
        """Add all lines that are not written yet, or none. The file is not held open: what takes its place is seen.

        Raises:
            FileError: the storage refuses them.
        """
        with naming(self.path):
            if self._written is None or self._written != _identity(self.path):
                self._keep(lambda record: True)
                there = set(read_regular(self.path).splitlines(keepends=True)) if self.path.is_file() else set()
                self._unwritten = [line for line in self._unwritten if line not in there]
            left, self._written = b"".join(self._unwritten), None  # if it fails, the next sees what is whole of it
            with open_to_append(self.path) as file:
                while left:
                    left = left[os.write(file.fileno(), left) :]
                if durably:
                    os.fsync(file.fileno())
            self._written = _identity(self.path)
            self._unwritten.clear()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; the lines of later steps go, and so does one that a kill has torn."""
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
            if self._unwritten and status == "success":  # of what fails, those lines are done again
                self._write()
        finally:
            self._written = None

    def _keep(self, wanted: Callable[[Record], bool]) -> None:
        """Leave the wanted records alone in the file, in one go: a kill leaves either the old lines or the new.

        If there are others in it than what was logged here and a kill has torn, all of it is kept aside.
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
            note(self.path, hashlib.sha256(content).hexdigest())  # it is ours as it is
        elif os.path.lexists(self.path):
            odd = parse_records(self.path)[1] if plain else None
            keep_aside(self.path, **({"why": str(odd)} if odd else {}))
        write_atomically(self.path, kept)


def read_records(path: Path) -> list[Record]:
    """What the lines of a metrics.jsonl say; a last one that a kill has torn is passed over.

    Raises:
        DataError: the first line that is no record.
    """
    records, odd = parse_records(path)
    if odd is not None:
        raise odd
    return records


def last_figure(path: Path, name: str) -> float | None:
    """The figure of this name that was logged last; None where there is none, or no file that can be read."""
    try:
        records = parse_records(path)[0] if path.is_file() else []
    except (DataError, OSError):
        return None
    return next((float(record[name]) for record in reversed(records) if name in record), None)


def parse_records(path: Path) -> tuple[list[Record], DataError | None]:
    """The records of a metrics.jsonl, and what is wrong with its first other line; a torn last one is no such line."""
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
    """What one line says.

    Raises:
        DataError: it is no record.
    """
    record = parse_json(line, Record)
    if type(step := record.get("step")) is not int or step < 0:
        raise wrong("step", step, "a whole number from 0")
    return record


def _identity(file: Path) -> tuple[int, ...] | None:
    """By which it is known again; its size too, for a new file may get the number of one that is gone."""
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
