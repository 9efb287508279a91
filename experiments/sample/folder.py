"""The folder that clips are written to: whole files only, and a record of each by which the work goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from experiments.sample.arrangement import RECORDS, Job
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.json_file import Count, as_json, read_json
from lumos_pl.sampling.generated_clip import GeneratedClip
from lumos_pl.settings.differences import differences


@with_config(extra="forbid")
class Record(TypedDict):
    """What stands beside a finished clip: its files, its place in the work, what was asked for, and what made it."""

    file: str
    codes: str
    index: Count
    sample: Count
    seed: int
    wanted_name: str | None
    request: dict[str, Any]
    made_with: dict[str, Any]


class SampleFolder:
    """`--out`, for one process.

    Args:
        shard: which process of how many; each has its own lock and temporary file.
    """

    def __init__(self, path: Path, shard: tuple[int, int]) -> None:
        self.path = path
        self._name = f"{RECORDS}/shard-{shard[0]}-of-{shard[1]}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder if need be, and keep out a second process with the same shard."""
        make_folder(self.path / RECORDS, error=ConfigError, where="--out")
        with file_lock(self.path / f"{self._name}.lock"):
            yield

    def write(self, file: str, data: bytes) -> None:
        """Put a file inside the folder, whole or not at all; nothing else appears beside it."""
        path = self.path / file
        make_folder(path.parent)
        write_atomically(path, data, temporary=self.path / f"{self._name}.partial")

    def finish(self, job: Job, clip: GeneratedClip, *, also: Sequence[str], record: Mapping[str, Any]) -> None:
        """Write a clip's file, the same as the other kinds in `also`, its codes, and last its record."""
        for suffix in (Path(job.file).suffix, *also):
            self.write(str(Path(job.file).with_suffix(suffix)), clip.encode(suffix))
        codes = io.BytesIO()
        np.save(codes, clip.codes.numpy().astype(np.uint16), allow_pickle=False)
        self.write(job.codes, codes.getvalue())
        where = {"file": job.file, "codes": job.codes, "wanted_name": job.wanted_name}
        place = {"index": job.index, "sample": job.sample}
        self.write(job.record, json.dumps({**where, **place, **record}, indent=1).encode() + b"\n")

    def is_done(self, job: Job) -> bool:
        """Whether a record stands for the job, whatever it says, and its files are there."""
        return all((self.path / file).is_file() for file in (job.record, job.file, job.codes))

    def matches(self, job: Job, request: Mapping[str, Any], *, also: Sequence[str] = ()) -> bool:
        """Whether the clip was made already as it is asked for now.

        Raises:
            ConfigError: it was asked for otherwise, with the first difference.
            DataError: its record is damaged.
        """
        path = self.path / job.record
        if not path.is_file():
            return False
        record = read_json(path, Record, fix="move it away, and the clip is made anew")
        # The request has sections of a configuration, maybe in keys of before.
        found = {"request": in_current_keys(record["request"]), "file": record["file"]}
        for where, made, wanted in differences(found, {"request": as_json(request), "file": job.file}):
            raise ConfigError(
                "a clip that was made otherwise is here",
                file=path,
                where=where.removeprefix("request."),
                got=_short(wanted),
                expected=_short(made),
                fix="ask for the same, or write elsewhere (--out)",
            )
        extra = [Path(job.file).with_suffix(suffix) for suffix in also]
        return self.is_done(job) and all((self.path / file).is_file() for file in extra)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
