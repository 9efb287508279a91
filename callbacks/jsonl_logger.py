"""Metrics as JSON lines: what a script reads where a person opens TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field

from callbacks.logs_once import LogsOnce
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import Number, keep_copy, parse_json, read_bytes, wrong

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Record = dict[str, Integer | Number | Literal["nan", "inf", "-inf"]]  # what a line holds, `step` among it


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
            self._rewrite(self._own_records())  # without what a kill has torn, which the next line would run into
            self._file = self.path.open("a", encoding="utf-8")
        with naming(self.path):
            self._file.write(_line({"step": step} | {key: _json_number(value) for key, value in metrics.items()}))
            self._file.flush()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; the lines of later steps go, and so does one that a kill has torn."""
        self.finalize("resumed")
        self._rewrite([record for record in self._own_records() if int(record["step"]) < step])
        super().rewind(step)

    def logged_at(self, step: int) -> set[str]:
        return {name for record in self._parsed()[0] if record["step"] == step for name in record}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            with naming(self.path):
                file.close()

    def _parsed(self) -> tuple[list[Record], DataError | None]:
        return parse_records(self.path) if os.path.lexists(self.path) else ([], None)

    def _own_records(self) -> list[Record]:
        """What is there already; where lines are none of ours, the file as it stands is kept beside it."""
        records, odd = self._parsed()
        if odd is not None:
            print(f"lumos: {odd} | the file is kept as {keep_copy(self.path)}", file=sys.stderr)
        return records

    def _rewrite(self, records: list[Record]) -> None:
        """Replace the file in one go: killed at any moment, it holds either the old lines or the new."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, "".join(map(_line, records)))


def read_records(path: Path) -> list[Record]:
    """What the lines of a metrics.jsonl say; a last one that a kill has torn is passed over.

    Raises:
        DataError: the first line that is no record.
    """
    records, odd = parse_records(path)
    if odd is not None:
        raise odd
    return records


def parse_records(path: Path) -> tuple[list[Record], DataError | None]:
    """The records of a metrics.jsonl, and what is wrong with its first other line; a torn last one is no such line."""
    *lines, last = read_bytes(path).split(b"\n")
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


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _json_number(value: Any) -> float | str:
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else str(float(number))
