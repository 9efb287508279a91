"""The folder that clips are written to: whole files only, and a record of each by which the work goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from experiments.sample.arrangement import RECORDS, Job
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.json_file import Count, as_json, read_json
from lumos_pl.machinery.own_files import digest_of, is_own, remove_partials
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.sampling.generated_clip import GeneratedClip
from lumos_pl.settings.differences import differences


@with_config(extra="forbid")
class Record(TypedDict):
    """What stands beside a finished clip: its files, its place in the work, what was asked for, and what made it.

    Records of before have no digests of the files.
    """

    file: str
    codes: str
    index: Count
    sample: Count
    seed: int
    wanted_name: str | None
    request: dict[str, Any]
    made_with: dict[str, Any]
    sha256: NotRequired[dict[str, str]]


class SampleFolder:
    """`--out`, for one process.

    Args:
        shard: which process of how many; each has its own lock and temporary file.
    """

    def __init__(self, path: Path, shard: tuple[int, int]) -> None:
        self.path = path
        self._name = f"{RECORDS}/shard-{shard[0]}-of-{shard[1]}"

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Make the folder if need be, and keep out a second process with the same shard, or wait for it."""
        make_folder(self.path / RECORDS, within=self.path, error=ConfigError, where="--out")
        with file_lock(self.path / f"{self._name}.lock", wait=wait):
            yield

    def write(self, file: str, data: bytes) -> None:
        """Put a file inside the folder, whole or not at all; nothing else appears beside it.

        A file of another's that has the name is kept aside, see `own_files.place`.
        """
        path = self.path / file
        make_folder(path.parent, within=self.path, where="--out")
        write_atomically(path, data, root=self.path)

    def clear(self, jobs: Iterable[Job], *, also: Sequence[str]) -> None:
        """Remove what a kill left of the files of these jobs, which no other process writes."""
        files = {Path(file) for job in jobs for file in (job.record, *self._files(job, also))}
        names = {file.name for file in files}
        for folder in {self.path / file.parent for file in files}:
            if folder.is_dir():
                remove_partials(folder, of=lambda name: name in names)

    def wrote(self, *files: str) -> bool:
        """Whether all of these files are there as they were written."""
        return all(is_own(self.path / file, root=self.path) for file in files)

    def finish(self, job: Job, clip: GeneratedClip, *, also: Sequence[str], record: Mapping[str, Any]) -> None:
        """Write a clip's file, the same as the other kinds in `also`, its codes, and last its record."""
        content = {job.with_suffix(suffix): clip.encode(suffix) for suffix in (Path(job.file).suffix, *also)}
        content[job.codes] = clip.encode(".npy")
        for file, data in content.items():
            self.write(file, data)
        where = {"file": job.file, "codes": job.codes, "wanted_name": job.wanted_name}
        place = {"index": job.index, "sample": job.sample}
        digests = {"sha256": {file: hashlib.sha256(data).hexdigest() for file, data in content.items()}}
        self.write(job.record, json.dumps({**where, **place, **record, **digests}, indent=1).encode() + b"\n")

    def is_done(self, job: Job, *, also: Sequence[str] = ()) -> bool:
        """Whether a record stands for the job, whatever it asked for, and its files are as the record has them.

        A record of before has no digests: there they must be as whole as their ends tell.

        Args:
            also: other kinds of files that it must have.
        """
        files = self._files(job, also)
        try:
            noted = read_json(self.path / job.record, Record).get("sha256")
        except DataError:
            return False
        if noted is None:
            return all(is_whole(self.path / file) for file in files)
        return all(file in noted and digest_of(self.path / file) == noted[file] for file in files)

    def _files(self, job: Job, also: Sequence[str]) -> list[str]:
        return [*map(job.with_suffix, (Path(job.file).suffix, *also)), job.codes]

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
        return self.is_done(job, also=also)


def is_whole(file: Path) -> bool:
    """Whether a file of codes, an image or a video ends as such a file does: one that was cut short does not."""
    try:
        data = read_regular(file, follow=False)
    except DataError:
        return False
    match file.suffix:
        case ".npy":
            try:
                return bool(np.load(io.BytesIO(data), allow_pickle=False).dtype == np.uint16)
            except (ValueError, EOFError):
                return False
        case ".png":
            return data.endswith(b"IEND\xaeB`\x82")
        case ".gif":
            return data.endswith(b";")
    end = 0  # of the boxes of an mp4, each of which begins with its size
    while 0 < (size := int.from_bytes(data[end : end + 4])) <= len(data) - end:
        end += size
    return 0 < end == len(data)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
