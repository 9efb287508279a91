"""Metrics as JSON lines: what a script reads where a person opens TensorBoard."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from callbacks.logs_once import LogsOnce
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import parse_json, read_bytes
from lumos_pl.machinery.own_files import ever_written, keep_aside, note, open_to_append


class JsonlLogger(LogsOnce):
    """Appends one line `{"step": 19, "loss/train": 2.31, ..}` per logging, complete on disk at once.

    `step` is the index of the optimizer step, from 0, as in TensorBoard. Values that are not finite
    stand as the strings "nan", "inf" and "-inf": JSON has no such numbers, and `float()` reads them.

    Args:
        path: the file; its folder is made, its lines are kept. A file of another's is kept aside.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: BufferedWriter | None = None

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
        with naming(self.path):
            if self._file is None:
                self._keep(lambda record: True)
                self._file = open_to_append(self.path)
            self._file.write(_line({"step": step} | {key: _json_number(value) for key, value in metrics.items()}))
            self._file.flush()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; the lines of later steps go, and so does one that a kill has torn."""
        self.finalize("resumed")
        with naming(self.path):
            self._keep(lambda record: bool(record["step"] < step))
        super().rewind(step)

    def logged_at(self, step: int) -> set[str]:
        records = read_records(self.path) if self.path.exists() else []
        return {name for record in records if record["step"] == step for name in record}

    @rank_zero_only
    def sync(self) -> None:
        if self._file is not None:
            with naming(self.path):
                os.fsync(self._file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        file, self._file = self._file, None
        if file is not None:
            with naming(self.path):
                file.close()

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Leave the wanted records alone in the file, in one go: a kill leaves either the old lines or the new.

        If there are others in it than what was logged here and a kill has torn, all of it is kept aside.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = self.path.is_file() and not self.path.is_symlink()
        content = read_bytes(self.path) if plain else b""
        lines = content.splitlines(keepends=True)
        records = [parse_record(line) for line in lines]
        kept = b"".join(line for line, record in zip(lines, records, strict=True) if record and wanted(record))
        if kept and not kept.endswith(b"\n"):
            kept += b"\n"
        torn = bool(lines) and not lines[-1].endswith(b"\n")
        if ever_written(self.path) and all(records[:-1] if torn else records):
            if plain and kept == content:
                return
            note(self.path, hashlib.sha256(content).hexdigest())  # it is ours as it is
        elif os.path.lexists(self.path):
            keep_aside(self.path)
        write_atomically(self.path, kept)


def read_records(path: Path) -> list[dict[str, Any]]:
    """What the whole lines of a metrics.jsonl say; a line that a kill has torn is passed over."""
    records = map(parse_record, read_bytes(path).splitlines())
    return [record for record in records if record is not None]


def parse_record(line: bytes) -> dict[str, Any] | None:
    """What one line says; None: it is not a whole one."""
    with suppress(DataError):
        record = parse_json(line)
        if isinstance(record, dict) and type(record.get("step")) is int:
            return record
    return None


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _json_number(value: Any) -> float | str:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else str(float(number))
