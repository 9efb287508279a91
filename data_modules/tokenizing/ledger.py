"""Shards of media that grow in a folder: each is final when it is written, and a ledger says what it holds.

    DIR/tokenize.shards.jsonl   a line for each shard, in the order of writing: what its manifest's entry will be, the
                                items whose samples it has, and what was quarantined since the line before
        images/, videos/        the shards; their manifests come when all is done

A line is written before its shard is, so that what stands in a shard stands in the ledger. After a kill between the
two, the last line is dropped, and its items are still in the journal. Eight bytes are kept in memory of an item.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, with_config
from typing_extensions import TypedDict

from data_modules.shards.columns_writer import ColumnsWriter, Known
from data_modules.shards.manifest import MANIFEST_FILE, Manifest, Shape, missing_shard
from data_modules.shards.shards import read_shard
from data_modules.shards.table import ShardEntry
from data_modules.shards.writer import KIND_FOLDERS
from data_modules.tokenizing.clips_of_video import parse_key
from data_modules.tokenizing.journal import RowNumber
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.atomic_file import naming
from lumos_pl.machinery.json_file import Count, parse_json
from lumos_pl.machinery.own_files import append, partial_of, put
from lumos_pl.machinery.regular_file import open_regular

LEDGER_FILE = "tokenize.shards.jsonl"
MOST_LINE_BYTES = 1 << 30

Value = TypeVar("Value")

_BEGINS = b'{"rows": '  # of a line

_Sizes = Annotated[list[Annotated[int, Field(ge=1, lt=1 << 32)]], Field(min_length=3, max_length=3)]
_Numbers = list[Annotated[int, Field(ge=0, lt=1 << 32)]]


@with_config(extra="forbid")
class LedgerShard(TypedDict):
    """See `ShardEntry`; `shapes` counts in the line's own."""

    file: str
    n_samples: Count
    n_bytes: Count
    sha256: str
    shapes: _Numbers
    text_lengths: _Numbers
    ends: _Numbers
    checksums: _Numbers


@with_config(extra="forbid")
class LedgerKnown(TypedDict):
    """See `Known.plain`."""

    captions: NotRequired[list[str]]
    metadata: NotRequired[list[dict[str, str | int | float | bool]]]
    text_ids: NotRequired[_Numbers]


@with_config(extra="forbid")
class LedgerLine(TypedDict):
    """A shard that was written, or none where only the rest of what was quarantined is left to say."""

    folder: NotRequired[Literal["images", "videos"]]
    shard: NotRequired[LedgerShard]
    shapes: NotRequired[list[_Sizes]]
    known: NotRequired[LedgerKnown]  # of the shard's samples, if anything is
    rows: Annotated[str, Field(pattern="^([0-9a-f]{16})*$")]  # of the items whose samples of this kind end with it
    begun: NotRequired[dict[RowNumber, Count]]  # of an item whose samples of this kind go on: how many there are so far
    rests: NotRequired[dict[RowNumber, Count]]  # how many pieces of an item were shorter than a clip
    quarantined: dict[RowNumber, str]


@dataclass(kw_only=True)
class Said:
    """What a line says of items, see `LedgerLine`."""

    rows: list[int] = field(default_factory=list)
    begun: dict[int, int] = field(default_factory=dict)
    rests: dict[int, int] = field(default_factory=dict)
    quarantined: dict[int, str] = field(default_factory=dict)


class Ledger:
    """The file, read back on opening.

    Attributes:
        taken: of each kind, the numbers of the items whose samples of that kind stand in shards, ascending.
        begun: of each kind, an item of whose samples so many stand in shards, and more are to come.
        quarantined: the numbers of the items that gave no sample, ascending.
        n_rests: pieces that were shorter than a clip.
        n_shards, n_samples: of each kind.
    Raises:
        DataError: the file is not what it should be, or a shard that it lists is gone or of another size, or the last
            of another content.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self._folder = folder / LEDGER_FILE, folder
        self.n_shards, self.n_samples = Counter[str](), Counter[str]()
        taken: dict[str, array[int]] = {kind: array("Q") for kind in KIND_FOLDERS}
        self.begun: dict[str, dict[int, int]] = {kind: {} for kind in KIND_FOLDERS}
        quarantined, without, end, self.n_rests = array("Q"), array("Q"), 0, 0
        files = {kind: _sizes(folder / kind) for kind in KIND_FOLDERS}
        missing: Path | None = None
        last: tuple[Path, str] | None = None
        for n_bytes, line in self._lines():
            if missing is not None:
                raise missing_shard(missing)
            if "shard" in line:
                shard, file = line["shard"], folder / line["folder"] / line["shard"]["file"]
                if shard["file"] not in files[line["folder"]]:
                    missing = file
                    continue  # of the last line, a kill came before its shard was written
                if (size := files[line["folder"]][shard["file"]]) != shard["n_bytes"]:
                    raise _another(file, f"{size} bytes", f"{shard['n_bytes']} bytes")
                last = file, shard["sha256"]
                self.n_shards[line["folder"]] += 1
                self.n_samples[line["folder"]] += line["shard"]["n_samples"]
                taken[line["folder"]].extend(_numbers(line["rows"]))
                self.begun[line["folder"]] = _by_number(line.get("begun", {}))
            quarantined.extend(_by_number(line["quarantined"]))
            without.extend(_by_number(line.get("rests", {})))
            self.n_rests += sum(line.get("rests", {}).values())
            end += n_bytes
        if last is not None and missing is None:  # else another's may have come between the line and its shard
            with open_regular(last[0], at_most=None) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != last[1]:
                raise _another(last[0], f"sha256 {found}", last[1])
        if os.path.lexists(self.file):
            os.truncate(self.file, end)
        self.taken = {kind: np.unique(np.frombuffer(found, np.uint64)) for kind, found in taken.items()}
        self.quarantined = np.unique(np.frombuffer(quarantined, np.uint64))
        self._without = np.unique(np.frombuffer(without, np.uint64))

    def done(self) -> NDArray[np.uint64]:
        """The numbers of the items of which something stands here, ascending."""
        return np.unique(np.concatenate([*self.taken.values(), self.quarantined, self._without]))

    def _lines(self) -> Iterator[tuple[int, LedgerLine]]:
        """Every line, and its bytes; what a kill cut short is no line."""
        if not os.path.lexists(self.file):
            return
        with open_regular(self.file, at_most=None, follow=False) as stream, located(self.file):
            for number, line in enumerate(iter(lambda: stream.readline(MOST_LINE_BYTES), b""), start=1):
                if not line.endswith(b"\n") and (_BEGINS.startswith(line[: len(_BEGINS)]) or line.startswith(_BEGINS)):
                    return
                with located(where=f"line {number}"):
                    yield len(line), _checked(parse_json(line, LedgerLine))

    def append(
        self, said: Said, written: tuple[str, ShardEntry, list[Shape]] | None, known: Known | None = None
    ) -> None:
        """Say what is about to be written: the shard of a kind, and the latent shapes that its entry counts in.

        Args:
            known: of the shard's samples.
        """
        content: dict[str, Any] = {"rows": "".join(map(_digits, said.rows))}
        content |= {name: _by_digits(values) for name in ("begun", "rests") if (values := getattr(said, name))}
        content["quarantined"] = _by_digits(said.quarantined)
        if written is not None:
            kind, entry, shapes = written
            content |= {"folder": kind, "shard": asdict(entry), "shapes": shapes}
            content |= {"known": known.plain} if known is not None and known.plain else {}
            self.n_shards[kind] += 1
            self.n_samples[kind] += entry.n_samples
        self.n_rests += sum(said.rests.values())
        with naming(self.file):
            append(self.file, json.dumps(content, default=array.tolist).encode() + b"\n")

    def forget_quarantined(self) -> None:
        """Have the items that gave no sample be done again."""
        if not len(self.quarantined):
            return
        lines = ({"rows": line["rows"], **line, "quarantined": {}} for _, line in self._lines() if "shard" in line)
        self._rewrite(json.dumps(line) + "\n" for line in lines)
        self.quarantined = np.empty(0, np.uint64)

    def reasons(self) -> dict[int, str]:
        """Why each item that gave no sample gave none."""
        return {number: why for _, line in self._lines() for number, why in _by_number(line["quarantined"]).items()}

    def manifest(self, kind: str, *, tokenizer: str, codebook_size: int, strides: Shape) -> Manifest:
        """Of all shards of a kind."""
        shapes: dict[Shape, int] = {}
        entries = []
        for _, line in self._lines():
            if "shard" in line and line["folder"] == kind:
                places = [shapes.setdefault((t, h, w), len(shapes)) for t, h, w in line["shapes"]]
                shard = line["shard"]
                entries.append(ShardEntry(**shard | {"shapes": [places[place] for place in shard["shapes"]]}))
        return Manifest(
            tokenizer=tokenizer,
            codebook_size=codebook_size,
            strides=strides,
            shapes=tuple(shapes),
            shards=tuple(entries),
        )

    def columns(self, kind: str, text_tokenizer: str | None) -> bytes | None:
        """The file of columns of all shards of a kind; None: nothing is known of its samples.

        Args:
            text_tokenizer: fingerprint of what counted the ids of captions.
        """
        writer = ColumnsWriter(text_tokenizer)
        for _, line in self._lines():
            if "shard" in line and line["folder"] == kind:
                known, n_samples = line.get("known", {}), line["shard"]["n_samples"]
                metadata = known.get("metadata") or [{}] * n_samples
                text_ids = known.get("text_ids") or [0] * n_samples
                for of_sample, n_ids in zip(metadata, text_ids, strict=True):
                    writer.add(of_sample, known.get("captions", ()), n_ids)
        return writer.content

    @classmethod
    def of_shards(cls, folder: Path) -> Ledger:
        """A ledger for a folder that was complete before there were any: what is in it is read for its keys."""
        made = cls(folder)
        made._rewrite(_lines_of(folder))
        return cls(folder)

    def _rewrite(self, lines: Iterable[str]) -> None:
        partial = partial_of(self.file)
        with naming(self.file):
            with partial.open("xb") as stream:
                for line in lines:
                    stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
            put(partial, self.file, own=is_ledger)


def _lines_of(folder: Path) -> Iterator[str]:
    for kind in KIND_FOLDERS:
        if not (folder / kind / MANIFEST_FILE).is_file():
            continue
        manifest = Manifest.load(folder / kind)
        for index, entry in enumerate(manifest.shards):
            digits = dict.fromkeys(parse_key(sample.key)[0] for sample in read_shard(folder / kind, manifest, index))
            content = {
                "rows": "".join(digits),
                "quarantined": {},
                "folder": kind,
                "shard": asdict(entry),
                "shapes": manifest.shapes,
            }
            yield json.dumps(content, default=array.tolist) + "\n"


def _sizes(folder: Path) -> dict[str, int]:
    """Of all files in a folder, by name."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _another(file: Path, got: str, expected: str) -> DataError:
    fix = "copy it anew, or move it away if it is the newest: what was in that is encoded again"
    return DataError("not the shard that was written", file=file, got=got, expected=expected, fix=fix)


def _digits(number: int) -> str:
    return f"{number:016x}"


def _by_digits(values: Mapping[int, Value]) -> dict[str, Value]:
    return {_digits(number): value for number, value in values.items()}


def _by_number(values: Mapping[str, Value]) -> dict[int, Value]:
    return {int(digits, 16): value for digits, value in values.items()}


def _numbers(digits: str) -> Iterator[int]:
    return (int(digits[place : place + 16], 16) for place in range(0, len(digits), 16))


def _checked(line: LedgerLine) -> LedgerLine:
    """What the fields of a line must be beside each other."""
    if not ("folder" in line) == ("shard" in line) == ("shapes" in line):
        raise DataError("missing field", expected="folder, shard and shapes together")
    if "shard" in line:
        shard = line["shard"]
        for name in "shapes", "text_lengths", "ends", "checksums":
            if len(shard[name]) != shard["n_samples"]:
                raise DataError("wrong field", where=f"shard.{name}", expected=f"{shard['n_samples']} items")
        for name, values in line.get("known", {}).items():
            if name != "captions" and isinstance(values, list) and len(values) != shard["n_samples"]:
                raise DataError("wrong field", where=f"known.{name}", expected=f"{shard['n_samples']} items")
        if max(shard["shapes"], default=0) >= len(line["shapes"]):
            raise DataError("wrong field", where="shard.shapes", expected=f"below {len(line['shapes'])}")
    return line


def is_ledger(path: Path) -> bool:
    """Whether a file is one by how it begins, or empty."""
    try:
        with open_regular(path, at_most=None, follow=False) as file:
            return file.read(len(_BEGINS)) in (_BEGINS, b"")
    except DataError:
        return False
