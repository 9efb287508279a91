"""The shards of a manifest: a few values for each, and a row of four numbers for each of their samples.

    shard   file  n_samples  n_bytes  sha256         sample   shape  text_length  end  checksum
    0       ...   3          ...      ...     ---->  0 1 2    one row each
    1       ...   2          ...      ...     ---->  3 4

The rows may lie in a mapped file, which all processes of a machine share: tens of millions of samples then take no
memory of their own. A table of some shards, or of several folders' shards, has the rows of those that it was made of.
"""

from __future__ import annotations

import mmap
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

UINT32 = "I"
PLAIN_ROW = np.dtype([("shape", "<u4"), ("text_length", "<u4")])
ROW = np.dtype([*PLAIN_ROW.descr, ("end", "<u4"), ("checksum", "<u4")])
MOST_AT_ONCE = 1 << 18  # rows: 4 MB


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What one shard must hold.

    Args:
        file: its name in the folder.
        n_samples, n_bytes, sha256: sample count, size and digest of the whole file.
        shapes: per sample, index into `Manifest.shapes`.
        text_lengths: per sample, the text's ids with the numbers of the whole clip written out, or
            the UTF-8 bytes of its caption: an upper bound on its tokens.
        ends, checksums: per sample, where its bytes in the file end (they begin where those of the one
            before end), and their crc32. They tell which samples of a damaged file are whole.
    """

    file: str
    n_samples: int
    n_bytes: int
    sha256: str
    shapes: Sequence[int]
    text_lengths: Sequence[int]
    ends: Sequence[int] = ()
    checksums: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in "shapes", "text_lengths", "ends", "checksums":
            values = getattr(self, name)
            content = values.astype("=u4").tobytes() if isinstance(values, np.ndarray) else values
            object.__setattr__(self, name, array(UINT32, content))


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The numbers of some samples, one after another.

    Args:
        values: of dtype `ROW`, or `PLAIN_ROW` where there are no checksums; shape [N].
        numbers: for each shape's number in `values`, its number in the manifest; None: the same.
        packed: which samples are selected, a bit each as of `numpy.packbits`, beginning `offset` before these; None:
            all of them.
        file: that `values` is mapped from, at `place`; None: they are in memory.
    """

    values: NDArray[Any]
    numbers: NDArray[np.uint32] | None = None
    packed: NDArray[np.uint8] | None = None
    offset: int = 0
    file: Path | None = None
    place: int = 0

    @classmethod
    def mapped(cls, file: Path, place: int, n: int, dtype: np.dtype[Any]) -> Self:
        """`n` rows of a file from an offset on. What the file holds is not looked at."""
        values = np.memmap(file, dtype, mode="r", offset=place, shape=(n,)) if n else np.empty(0, dtype)
        return cls(values=values, file=file, place=place)

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file, too, instead of being sent what it holds."""
        state = dict(vars(self))
        if self.file is not None and not self.offset:
            state["values"] = None
        return _rows_again, (state, len(self), self.values.dtype)

    def between(self, start: int, stop: int) -> Rows:
        return replace(self, values=self.values[start:stop], offset=self.offset + start)

    @property
    def shapes(self) -> NDArray[np.uint32]:
        """Of each sample, index into the manifest's shapes."""
        shapes: NDArray[np.uint32] = self.values["shape"]
        return shapes if self.numbers is None else self.numbers[shapes]

    @property
    def text_lengths(self) -> NDArray[np.uint32]:
        lengths: NDArray[np.uint32] = self.values["text_length"]
        return lengths

    @property
    def selected(self) -> NDArray[np.bool_]:
        """Which of the samples are."""
        if self.packed is None:
            return np.ones(len(self), bool)
        first, within = divmod(self.offset, 8)
        bits = np.unpackbits(self.packed[first : -(-(self.offset + len(self)) // 8)])
        return bits[within : within + len(self)].view(np.bool_)

    @property
    def places(self) -> NDArray[np.int64]:
        """Of the samples that are selected, in order."""
        return np.arange(len(self)) if self.packed is None else np.flatnonzero(self.selected)

    def numbered(self, numbers: NDArray[np.uint32]) -> Rows:
        """The same, where a manifest has the shapes in another order."""
        return replace(self, numbers=numbers if self.numbers is None else numbers[self.numbers])

    def forget(self) -> None:
        """Give the memory back that a look at all of a mapped file took; the file is read again when it is needed."""
        mapping = getattr(self.values, "_mmap", None)  # of a numpy.memmap
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def _rows_again(state: dict[str, Any], n: int, dtype: np.dtype[Any]) -> Rows:
    if state["values"] is None:
        state["values"] = Rows.mapped(state["file"], state["place"], n, dtype).values
    return Rows(**state)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTable(Sequence[ShardEntry]):
    """Shards in order; `table[i]` is built when it is asked for.

    Args:
        files, digests: names and sha256, as UTF-8; shape [n_shards], as all below.
        n_samples, n_bytes: of each file.
        parts, starts: in which of `rows` each shard's samples lie, from which on.
        rows: of all samples.
    """

    files: NDArray[np.bytes_]
    digests: NDArray[np.bytes_]
    n_samples: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    parts: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: tuple[Rows, ...]

    @classmethod
    def of(cls, entries: Iterable[ShardEntry]) -> ShardTable:
        """Of entries by themselves, whose rows are held in memory."""
        listed = tuple(entries)
        tables = [_of_alike(list(alike), has) for has, alike in groupby(listed, key=lambda entry: bool(entry.ends))]
        return cls.joined(tables) if tables else _of_alike([], False)

    @classmethod
    def over(cls, rows: Rows, shards: Sequence[tuple[str, int, int, str]]) -> Self:
        """Of shards whose samples are `rows` in order.

        Args:
            shards: file, n_samples, n_bytes and sha256 of each.
        """
        counts = np.array([n for _, n, _, _ in shards], np.int64)
        return cls(
            files=np.array([file.encode() for file, _, _, _ in shards], np.bytes_),
            digests=np.array([digest.encode() for _, _, _, digest in shards], np.bytes_),
            n_samples=counts,
            n_bytes=np.array([n for _, _, n, _ in shards], np.int64),
            parts=np.zeros(len(shards), np.int32),
            starts=np.cumsum(counts) - counts,
            rows=(rows,),
        )

    @classmethod
    def joined(cls, tables: Sequence[ShardTable]) -> ShardTable:
        """One table of the shards of all."""
        if len(tables) == 1:
            return tables[0]
        firsts = np.cumsum([0, *(len(table.rows) for table in tables)])

        def together(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(table, name) for table in tables])

        parts = np.concatenate([table.parts + first for table, first in zip(tables, firsts, strict=False)])
        rows = tuple(rows for table in tables for rows in table.rows)
        same = {name: together(name) for name in ("files", "digests", "n_samples", "n_bytes", "starts")}
        return cls(**same, parts=parts.astype(np.int32), rows=rows)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ShardEntry, ...]: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | tuple[ShardEntry, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        number = range(len(self))[index]
        values = self.of_shard(number)
        names = ("ends", "end"), ("checksums", "checksum")
        has = values.values.dtype.names or ()
        more: dict[str, Any] = {ours: values.values[theirs] for ours, theirs in names if theirs in has}
        return ShardEntry(
            file=self.file(number),
            n_samples=int(self.n_samples[number]),
            n_bytes=int(self.n_bytes[number]),
            sha256=self.digests[number].decode(),
            shapes=values.shapes,  # type: ignore[arg-type]
            text_lengths=values.text_lengths,  # type: ignore[arg-type]
            **more,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def file(self, index: int) -> str:
        """The name of a shard's file, without a look at its samples."""
        name: str = self.files[index].decode()
        return name

    def names(self) -> list[str]:
        """Of all files."""
        return [name.decode() for name in self.files]

    def take(self, numbers: Sequence[int] | NDArray[np.int64]) -> ShardTable:
        """Some of the shards, in the order of `numbers`."""
        some = np.asarray(numbers, np.int64)
        names = "files", "digests", "n_samples", "n_bytes", "parts", "starts"
        return replace(self, **{name: getattr(self, name)[some] for name in names})

    def numbered(self, numbers: Sequence[int]) -> ShardTable:
        """The same shards, where each shape has another number in the manifest."""
        if list(numbers) == list(range(len(numbers))):
            return self
        return replace(self, rows=tuple(rows.numbered(np.array(numbers, np.uint32)) for rows in self.rows))

    def of_shard(self, index: int) -> Rows:
        """The numbers of one shard's samples."""
        start, n = int(self.starts[index]), int(self.n_samples[index])
        rows: Rows = self.rows[int(self.parts[index])]
        return rows.between(start, start + n)

    def look_up(
        self, shards: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Shape and text length of samples anywhere; all arrays of shape [n]."""
        shapes, lengths = np.empty(len(shards), np.uint32), np.empty(len(shards), np.uint32)
        parts, at = self.parts[shards], self.starts[shards] + places
        for part in np.unique(parts).tolist():
            own = parts == part
            found = replace(self.rows[part], values=self.rows[part].values[at[own]])
            shapes[own], lengths[own] = found.shapes, found.text_lengths
        return shapes, lengths

    def runs(self, most: int = MOST_AT_ONCE) -> Iterator[tuple[range, Rows]]:
        """All samples in order, by shards whose rows lie one after another: about `most` samples at once.

        What was mapped for a run does not stay in this process's memory behind it.
        """
        ends = self.starts + self.n_samples
        breaks = np.flatnonzero((self.parts[1:] != self.parts[:-1]) | (self.starts[1:] != ends[:-1])) + 1
        for first, last in pairwise([0, *breaks.tolist(), len(self)]):
            while first < last:
                within = int(np.searchsorted(ends[first:last], self.starts[first] + most, side="right"))
                stop = first + max(1, within)
                rows = self.rows[int(self.parts[first])]
                yield range(first, stop), rows.between(int(self.starts[first]), int(ends[stop - 1]))
                first = stop
        for mapped in self.rows:
            mapped.forget()

    def selecting(self, selected: NDArray[np.bool_]) -> ShardTable:
        """The same shards, of whose samples some are selected: those of `selected` [N] that were so far."""
        kept = [np.zeros(len(rows), bool) for rows in self.rows]
        done = 0
        for shards, rows in self.runs():
            part = selected[done : done + len(rows)]
            kept[self.parts[shards.start]][rows.offset : rows.offset + len(rows)] = part & rows.selected
            done += len(rows)
        packed = tuple(replace(one, packed=np.packbits(bits)) for one, bits in zip(self.rows, kept, strict=True))
        return replace(self, rows=packed)

    def with_text_lengths(self, lengths: NDArray[np.integer]) -> ShardTable:
        """The same shards, whose samples have texts of other lengths [N]; of their numbers, those that a plan needs."""
        values = [np.empty(len(rows), PLAIN_ROW) for rows in self.rows]
        done = 0
        for shards, rows in self.runs():
            part = values[self.parts[shards.start]][rows.offset : rows.offset + len(rows)]
            part["shape"], part["text_length"] = rows.values["shape"], lengths[done : (done := done + len(rows))]
        own = zip(self.rows, values, strict=True)
        return replace(self, rows=tuple(replace(rows, values=one, file=None, place=0) for rows, one in own))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a row of all samples: without checksums where not all shards have them."""
        return PLAIN_ROW if any(rows.values.dtype != ROW for rows in self.rows) else ROW

    @property
    def selects(self) -> bool:
        """Whether some samples may not be selected."""
        return any(rows.packed is not None for rows in self.rows)

    def n_selected(self) -> NDArray[np.int64]:
        """How many samples of each shard are selected, shape [n_shards]."""
        if not self.selects:
            return self.n_samples
        counts = np.empty(len(self), np.int64)
        for shards, rows in self.runs():
            counts[shards.start : shards.stop] = self.sums(shards, rows.selected)
        return counts

    def counts(self) -> dict[tuple[int, int], int]:
        """How many of the selected samples there are of each shape and text length."""
        found: dict[tuple[int, int], int] = {}
        for _, rows in self.runs():
            both = rows.shapes.astype(np.uint64) << np.uint64(32) | rows.text_lengths
            kinds, counts = np.unique(both[rows.selected], return_counts=True)
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                key = kind >> 32, kind & 0xFFFFFFFF
                found[key] = found.get(key, 0) + count
        return found

    def sums(self, shards: range, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over each shard's samples of a run."""
        bounds = np.append(0, np.cumsum(self.n_samples[shards.start : shards.stop]))
        sums: NDArray[Any] = np.diff(np.append(0, np.cumsum(values, dtype=np.int64))[bounds])
        return sums


def _of_alike(entries: list[ShardEntry], checksums: bool) -> ShardTable:
    values = np.empty(sum(len(entry.shapes) for entry in entries), ROW if checksums else PLAIN_ROW)
    done = 0
    for entry in entries:
        values[done : (done := done + len(entry.shapes))] = rows_of(entry)
    return ShardTable.over(Rows(values=values), [(e.file, e.n_samples, e.n_bytes, e.sha256) for e in entries])


def rows_of(entry: ShardEntry) -> NDArray[Any]:
    """The numbers of an entry's samples."""
    values = np.empty(len(entry.shapes), ROW if entry.ends else PLAIN_ROW)
    values["shape"], values["text_length"] = entry.shapes, entry.text_lengths
    if entry.ends:
        values["end"], values["checksum"] = entry.ends, entry.checksums
    return values
