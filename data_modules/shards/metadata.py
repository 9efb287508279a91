"""What is known of the samples of a shard folder besides codes and text, in columns: `DIR/columns.npz`.

The JSON of each sample has its own metadata. The columns hold the same for all samples, in the order of the manifest,
so that a condition on them is found to hold or not without opening a shard. The manifest has the file's digest.

    header        JSON as bytes: format, number of samples, names of the columns and of the captions, text tokenizer
    values-N      of column N, JSON as bytes: the list of the values that occur
    places-N      of column N, per sample: 1 + the place of its value among them; 0: it has none
    text_ids      per sample, the ids of its longest caption, where a text tokenizer counted them
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.columns_writer import ColumnsHeader, ColumnsWriter, Places, columns_content
from data_modules.shards.manifest import Manifest
from data_modules.shards.places import Place, local_file
from data_modules.shards.reading import RETRY, read_twice
from data_modules.shards.sample import Scalar, ShardSample
from data_modules.shards.where import Where
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.machinery.retrying import RetryConfig

COLUMNS_FILE = "columns.npz"
MOST_BYTES = 8 << 30  # of all that the file holds: a hundred million samples with a dozen columns


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the values that occur, and per sample 1 + the place of its own among them, or 0."""

    values: Sequence[Scalar]
    places: Places

    def take(self, samples: NDArray[np.integer] | NDArray[np.bool_]) -> Column:
        return replace(self, places=self.places[samples])


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a set of samples.

    Args:
        n_samples: that they are of.
        columns: by name; each is read when it is asked for.
        captions: the names by which samples have several captions.
        text_tokenizer: fingerprint of what counted `text_ids`; None: nothing did.
        text_ids: per sample, the ids of its longest caption, without a prompt around it.
    """

    n_samples: int
    columns: Mapping[str, Callable[[], Column]] = field(default_factory=dict)
    captions: frozenset[str] = frozenset()
    text_tokenizer: str | None = None
    text_ids: NDArray[np.uint32] | None = None

    @classmethod
    def of(cls, samples: Iterable[ShardSample]) -> Self:
        """Of samples that are at hand."""
        writer = ColumnsWriter()
        for sample in samples:
            writer.add(sample.metadata, sample.captions)
        return cls.parse(writer.content) if writer.content is not None else cls(n_samples=writer.n_samples)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Those of a file.

        Raises:
            DataError: it is not what it should be.
        """
        try:
            archive = zipfile.ZipFile(io.BytesIO(data))
            members = archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise DataError("not a file of columns", got=error) from error
        if sum(member.file_size for member in members) > MOST_BYTES:
            raise DataError("columns too large", expected=f"at most {MOST_BYTES} bytes")
        arrays = _Arrays(archive)
        header = parse_json(arrays.read("header", np.uint8).tobytes(), ColumnsHeader)
        n_samples = header["n_samples"]
        with_ids = header["text_tokenizer"] is not None
        columns = {name: _Reader(arrays, number, name, n_samples) for number, name in enumerate(header["columns"])}
        return cls(
            n_samples=n_samples,
            columns=columns,
            captions=frozenset(header["captions"]),
            text_tokenizer=header["text_tokenizer"],
            text_ids=arrays.read("text_ids", np.uint32, n=n_samples) if with_ids else None,
        )

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Those of several sets behind each other; the ids are kept where one text tokenizer counted all of them."""
        if len(parts) == 1:
            return parts[0]
        names = dict.fromkeys(name for part in parts for name in part.columns)
        counted_by = {part.text_tokenizer for part in parts}
        text_ids = [part.text_ids for part in parts if part.text_ids is not None]
        counted = len(counted_by) == 1 and len(text_ids) == len(parts)
        return cls(
            n_samples=sum(part.n_samples for part in parts),
            columns={name: _Joined(name, parts) for name in names},
            captions=frozenset().union(*(part.captions for part in parts)),
            text_tokenizer=next(iter(counted_by)) if counted else None,
            text_ids=np.concatenate(text_ids) if counted else None,
        )

    def take(self, samples: NDArray[np.integer] | NDArray[np.bool_]) -> Columns:
        """Those of some samples, by their numbers or a choice of all."""
        taken = np.arange(self.n_samples)[samples]

        def of(read: Callable[[], Column]) -> Callable[[], Column]:
            return lambda: read().take(taken)

        return replace(
            self,
            n_samples=len(taken),
            columns={name: of(read) for name, read in self.columns.items()},
            text_ids=None if self.text_ids is None else self.text_ids[taken],
        )

    def select(self, where: Where) -> NDArray[np.bool_]:
        """Which samples fulfil a condition, [n_samples].

        Raises:
            ConfigError: it asks for a column that no sample has, or compares values of two kinds.
        """
        where.check_columns(self.columns)
        if not where.columns:
            return np.full(self.n_samples, where.holds({}))
        columns = [self.columns[name]() for name in where.columns]
        rows, numbers = _combinations([column.places for column in columns])
        known = [(None, *column.values) for column in columns]
        holds = [
            where.holds({name: values[place] for name, values, place in zip(where.columns, known, row, strict=True)})
            for row in rows.tolist()  # each combination of values once
        ]
        taken: NDArray[np.bool_] = np.asarray(holds, np.bool_)[numbers]
        return taken

    @cached_property
    def content(self) -> bytes:
        """Of the file: the same columns give the same bytes."""
        columns = {name: read() for name, read in self.columns.items()}
        return columns_content(
            self.n_samples,
            {name: (column.values, column.places) for name, column in columns.items()},
            sorted(self.captions),
            self.text_tokenizer,
            self.text_ids,
        )


def _combinations(columns: Sequence[Places]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The rows that occur in some columns, [n, columns], and per sample the number of its own."""
    sizes = [int(column.max(initial=0)) + 1 for column in columns]
    if math.prod(sizes) < 1 << 63:  # one number stands for a row: 20 times as quick
        rows, numbers = np.unique(np.ravel_multi_index(tuple(columns), sizes), return_inverse=True)
        return np.stack(np.unravel_index(rows, sizes), axis=1), numbers
    rows, numbers = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return rows, numbers.reshape(-1)


@dataclass(frozen=True)
class _Arrays:
    archive: zipfile.ZipFile

    def read(self, name: str, *kinds: type[np.unsignedinteger], n: int | None = None) -> NDArray[np.unsignedinteger]:
        """One array of a file, of one axis."""
        try:
            with self.archive.open(f"{name}.npy") as stream:
                found = np.lib.format.read_array(stream, allow_pickle=False)
        except Exception as error:  # numpy and zipfile raise many kinds
            raise DataError("not a file of columns", where=name, got=error) from error
        if found.ndim != 1 or found.dtype not in [np.dtype(kind) for kind in kinds] or n not in (None, len(found)):
            got, expected = f"{found.dtype} {list(found.shape)}", f"{kinds[0].__name__} [{'N' if n is None else n}]"
            raise DataError("wrong columns", where=name, got=got, expected=expected)
        return found


@dataclass(frozen=True)
class _Reader:
    """Reads one column of a file."""

    arrays: _Arrays
    number: int
    name: str
    n_samples: int

    def __call__(self) -> Column:
        with located(where=f"column {self.name}"):
            data = self.arrays.read(f"values-{self.number}", np.uint8).tobytes()
            values = parse_json(data, list[str | int | float | bool])
            places = self.arrays.read(f"places-{self.number}", np.uint8, np.uint16, np.uint32, n=self.n_samples)
            if len(places) and int(places.max()) > len(values):
                raise DataError("wrong columns", got=f"place {places.max()}", expected=f"at most {len(values)}")
            return Column(values=values, places=places)


@dataclass(frozen=True)
class _Joined:
    """Reads one column of several sets."""

    name: str
    parts: Sequence[Columns]

    def __call__(self) -> Column:
        table: dict[tuple[type, Scalar], int] = {}
        places = []
        for part in self.parts:
            if self.name not in part.columns:
                places.append(np.zeros(part.n_samples, np.uint32))
                continue
            column = part.columns[self.name]()
            own = [table.setdefault((type(value), value), len(table) + 1) for value in column.values]
            places.append(np.array([0, *own], np.uint32)[column.places])
        return Column(values=[value for _, value in table], places=np.concatenate(places))


def read_columns(folder: Place, manifest: Manifest, retry: RetryConfig = RETRY) -> Columns:
    """The columns of a folder of shards; none where its manifest has none.

    Raises:
        DataError: they are missing, other than the manifest says, or damaged.
        TemporaryError: see `read_patiently`.
    """
    if manifest.metadata is None:
        return Columns(n_samples=manifest.n_samples)
    file, vouched = folder / COLUMNS_FILE, manifest.metadata

    def read() -> Columns:
        with located(file):
            data = read_regular(local_file(file, vouched.sha256, vouched.n_bytes), at_most=MOST_BYTES)
            if (got := hashlib.sha256(data).hexdigest()) != vouched.sha256:
                raise DataError("columns with other content", got=f"sha256 {got}", expected=vouched.sha256)
            columns = Columns.parse(data)
            if columns.n_samples != manifest.n_samples:
                raise DataError("columns of other samples", got=columns.n_samples, expected=manifest.n_samples)
            return columns

    return read_twice(read, file, retry)
