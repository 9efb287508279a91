"""The numbers of a large data set's samples in one file, beside the manifest: `manifest.npy`.

    numpy.load("manifest.npy", mmap_mode="r")["text_length"]          all samples, in the order of the shards

It is mapped, not read, so that all processes of a machine share it. Before that it is read through once, in parts: its
digest is the manifest's, and no number in it is one that cannot be.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.table import MOST_AT_ONCE, Rows, ShardTable
from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import wrong
from lumos_pl.machinery.regular_file import open_regular, size_of, unreadable

ROWS_FILE = "manifest.npy"
_FIX = "copy it anew together with the manifest"


def rows_header(n: int, dtype: np.dtype[Any]) -> bytes:
    """What a `.npy` file of `n` rows begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype.descr, "fortran_order": False, "shape": (n,)})
    return header.getvalue()


def rows_content(table: ShardTable) -> Iterator[bytes]:
    """The file of a table's samples, in parts."""
    dtype = table.dtype
    yield rows_header(int(table.n_samples.sum()), dtype)
    for _, rows in table.runs():
        part = np.empty(len(rows), dtype)
        for name in dtype.names or ():
            part[name] = rows.shapes if name == "shape" else rows.values[name]
        yield part.tobytes()


def digest_of_content(parts: Iterable[bytes]) -> tuple[int, str]:
    """Size and sha256."""
    digest, n_bytes = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        n_bytes += len(part)
    return n_bytes, digest.hexdigest()


def open_rows(
    file: Path, n_bytes: int, sha256: str, dtype: np.dtype[Any], table: ShardTable, n_shapes: int, longest: int
) -> Rows:
    """The rows of a file, all of which are as they should be.

    Args:
        n_bytes, sha256: what the file must be.
        table: the shards whose samples they are, without rows.
        n_shapes: each shape's number is below it.
        longest: of the texts.
    Raises:
        DataError: it is not there, another, or says what cannot be of a sample.
    """
    n = int(table.n_samples.sum())
    header = rows_header(n, dtype)
    try:
        with open_regular(file, at_most=None) as stream:
            if size_of(stream) != n_bytes:
                got, expected = f"{size_of(stream)} bytes", f"{n_bytes} bytes, as the manifest says"
                raise DataError("file of another size", file=file, got=got, expected=expected, fix=_FIX)
            if n_bytes != len(header) + n * dtype.itemsize or (begins := stream.read(len(header))) != header:
                raise DataError("not the rows of these samples", file=file, expected=f"{n} rows of {dtype}", fix=_FIX)
            digest, before = hashlib.sha256(begins), 0
            found: DataError | None = None
            for start, part in _parts(stream, n, dtype):
                digest.update(part)
                rows = np.frombuffer(part, dtype)
                found = found or _first_wrong(table, rows, start, before, n_shapes, longest)
                before = int(rows["end"][-1]) if "end" in (dtype.names or ()) else 0
    except OSError as error:
        raise unreadable(file, error) from error
    if digest.hexdigest() != sha256:
        got = f"sha256 {digest.hexdigest()}"
        raise DataError("file with other content", file=file, got=got, expected=sha256, fix=_FIX)
    if found is not None:
        raise DataError(**found.parts | {"file": file})
    return Rows.mapped(file, len(header), n, dtype)


def _parts(stream: BufferedReader, n: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, bytes]]:
    """The rows from where the file stands, and the number of the first of each part."""
    for start in range(0, n, MOST_AT_ONCE):
        n_bytes = min(MOST_AT_ONCE, n - start) * dtype.itemsize
        part = stream.read(n_bytes)
        if len(part) != n_bytes:
            raise OSError(errno.EIO, "cut short while it was read")
        yield start, part


def _first_wrong(
    table: ShardTable, rows: NDArray[Any], start: int, before: int, n_shapes: int, longest: int
) -> DataError | None:
    """What cannot be of some samples.

    Args:
        start: the number of the first of them.
        before: the end of the one before it.
    """
    shapes, lengths = rows["shape"], rows["text_length"]
    bad = [("shape", shapes >= n_shapes, f"at most {n_shapes - 1}")]
    bad.append(("text_length", (lengths < 1) | (lengths > longest), f"1 to {longest}"))
    if "end" in (rows.dtype.names or ()):
        ends = rows["end"].astype(np.int64)
        starts = np.append(before, ends[:-1])
        first, last = np.searchsorted(table.starts, [start, start + len(rows)])
        starts[table.starts[first:last] - start] = 0  # each file's first sample begins where the file does
        shards = slice(max(0, first - 1), last)
        finals = table.starts[shards] + table.n_samples[shards] - 1 - start
        here = (finals >= 0) & (finals < len(rows))
        too_far = np.zeros(len(rows), bool)
        too_far[finals[here]] = ends[finals[here]] > table.n_bytes[shards][here]
        bad.append(("end", (ends <= starts) | too_far, "ascending numbers up to the file's size"))
    for name, where, expected in bad:
        if where.any():
            place = int(np.argmax(where))
            return wrong(f"row {start + place}: {name}", int(rows[name][place]), expected)
    return None
