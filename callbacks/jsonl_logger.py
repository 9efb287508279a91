"""Metrics as JSON lines: what a script reads where a person opens TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.utilities import rank_zero_only

from callbacks.logs_once import LogsOnce
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import parse_json, read_bytes


class JsonlLogger(LogsOnce):
    """Appends one line `{"step": 19, "loss/train": 2.31, ..}` per logging, complete on disk at once.

    `step` is the index of the optimizer step, from 0, as in TensorBoard. Values that are not finite
    stand as the strings "nan", "inf" and "-inf": JSON has no such numbers, and `float()` reads them.

    Args:
        path: the file; its folder is made, its lines are kept.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._file: TextIO | None = None

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
        if self._file is None:
            self._rewrite(self._records())  # without what a kill has torn, which the next line would run into
            self._file = self.path.open("a", encoding="utf-8")
        with naming(self.path):
            self._file.write(_line({"step": step} | {key: _json_number(value) for key, value in metrics.items()}))
            self._file.flush()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; the lines of later steps go, and so does one that a kill has torn."""
        self.finalize("resumed")
        self._rewrite([record for record in self._records() if record["step"] < step])
        super().rewind(step)

    def logged_at(self, step: int) -> set[str]:
        return {name for record in self._records() if record["step"] == step for name in record}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            with naming(self.path):
                file.close()

    def _records(self) -> list[dict[str, Any]]:
        return read_records(self.path) if self.path.exists() else []

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        """Replace the file in one go: killed at any moment, it holds either the old lines or the new."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(map(_line, records)))


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


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _json_number(value: Any) -> float | str:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else str(float(number))
