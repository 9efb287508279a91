"""The zip archive that torch.save writes: that every tensor lies whole in a record of its own.

    NAME/data.pkl    the values, each tensor as a view of a storage: its key, dtype and number of elements
    NAME/data/KEY    the numbers of one storage, not compressed

torch.load(mmap=True) takes as many bytes as the pickle says from where a record begins, whatever the record's length:
of a shorter one the next records become weights. And a view that reaches beyond its storage is filled with whatever
memory holds. So the pickle is gone through first, by an unpickler that makes nothing of what it names.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lumos_pl.errors import CheckpointError, LumosError
from lumos_pl.machinery.regular_file import open_regular

_MOST_PICKLED = 16 << 20  # bytes of the values beside the tensors, of which ten thousand take a few
_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool},
    **{"ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
}
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a record; its last two: how long the name and the extra field are


@dataclass(frozen=True)
class Storage:
    """Numbers of a record, as the pickle describes them."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor, as the pickle describes it."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """What stands for anything else that a pickle names, calls or fills: nothing comes of it."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(_Inert)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def _nothing(self, *_: Any, **__: Any) -> _Inert:
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = _nothing


class _Described(pickle._Unpickler):  # not C's, whose memo takes as much memory as a pickle asks for
    """Goes through a pickle of torch's for its storages, and checks that each tensor lies within one."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return self._view
        if module in ("torch", "torch.storage"):
            named = getattr(torch, name, None)
            if isinstance(named, torch.dtype) or name == "UntypedStorage":
                return named
            if name in _STORAGES:
                return _STORAGES[name]
        return _Inert()

    def persistent_load(self, pid: Any, /) -> Storage:
        match pid:
            case ("storage", kind, str(key), _, int(numel)) if kind is torch.UntypedStorage:
                storage = Storage(key, torch.uint8, numel)
            case ("storage", torch.dtype() as kind, str(key), _, int(numel)):
                storage = Storage(key, kind, numel)
            case _:
                raise ValueError("a storage of no known kind")
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"data/{storage.key} is of two kinds")
        return storage

    def _view(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> View:
        """A tensor; the storage is counted in bytes where its dtype is said apart (`_rebuild_tensor_v3`)."""
        dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else getattr(storage, "dtype", None)
        numbers = [offset, *size, *stride]
        if not (isinstance(storage, Storage) and isinstance(dtype, torch.dtype) and len(size) == len(stride)):
            raise ValueError("a tensor of no known kind")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a tensor of negative or strange size")
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if 0 not in size and end * dtype.itemsize > storage.numel * storage.dtype.itemsize:
            raise ValueError(f"a tensor reaches beyond data/{storage.key}")
        return View(dtype, tuple(size), tuple(stride))


def check_file(file: Path, *, compare_crc: bool) -> None:
    """Raise CheckpointError unless a file is an archive of torch's whose tensors lie within their own records.

    Args:
        compare_crc: compare the archive's own checksums too, of a file without a digest: torch never does, so a
            flipped bit would load as a weight.
    """
    with open_regular(file, at_most=None, error=CheckpointError) as stream:
        check_archive(stream, file, compare_crc=compare_crc)


def check_archive(stream: IO[bytes], file: Path, *, compare_crc: bool = False) -> object:
    """As `check_file`, of an archive that may be a part of a file.

    Returns:
        what it holds, as far as it is one tensor: a `View`.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip() if compare_crc else None
            if damaged is not None:
                raise CheckpointError(
                    "checkpoint is damaged", file=file, where=damaged, got="another crc32 than was written"
                )
            return _check(archive, stream, file)
    except LumosError:
        raise
    except Exception as error:  # a damaged archive or pickle may raise anything
        raise CheckpointError("checkpoint cannot be read", file=file, got=in_short(error)) from None


def _check(archive: zipfile.ZipFile, stream: IO[bytes], file: Path) -> object:
    records = archive.infolist()
    folder, _, _ = records[0].filename.partition("/")
    _check_layout(records, stream, archive.start_dir, file)
    by_name = {record.filename.removeprefix(f"{folder}/"): record for record in records}
    if len(by_name) < len(records):
        raise _refused(file, folder, "a record twice", "each once")
    for name, most in ("data.pkl", _MOST_PICKLED), ("byteorder", 16):
        if name in by_name and by_name[name].file_size > most:
            raise _refused(file, name, f"{by_name[name].file_size} bytes", f"at most {most}")
    order = archive.read(by_name["byteorder"]).decode() if "byteorder" in by_name else "little"
    if order != sys.byteorder:
        raise _refused(file, "byteorder", repr(order), sys.byteorder)
    pickled = _Described(archive.read(by_name["data.pkl"]))
    content: object = pickled.load()
    expected = {f"data/{key}": s.numel * s.dtype.itemsize for key, s in pickled.storages.items()}
    got = {name: record.file_size for name, record in by_name.items() if name.startswith("data/")}
    for name in sorted({*expected, *got}):
        if got.get(name) != expected.get(name):
            sizes = ("nothing" if n is None else f"{n} bytes" for n in (got.get(name), expected.get(name)))
            raise _refused(file, name, *sizes)
    return content


def _check_layout(records: list[zipfile.ZipInfo], stream: IO[bytes], end_of_records: int, file: Path) -> None:
    """Refuse records that are compressed, or lie in one another, or are called otherwise where they begin."""
    reached = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise _refused(file, record.filename, "compressed", "stored")
        if record.header_offset < reached:
            raise _refused(file, record.filename, "a record in another", "one after the other")
        stream.seek(record.header_offset)
        mark, *_, n_name, n_extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        if mark != b"PK\3\4" or stream.read(n_name) != record.orig_filename.encode():
            raise _refused(file, record.filename, "another record", "the one that the archive lists there")
        reached = record.header_offset + _LOCAL_HEADER.size + n_name + n_extra + record.file_size
    if reached > end_of_records:
        raise _refused(file, records[-1].filename, "a record beyond the archive's end", "all within")


def _refused(file: Path, where: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "not an archive as torch writes it", file=file, where=where[:100], got=got, expected=expected
    )


def in_short(error: BaseException) -> str:
    """What a library's error says, on one line and without torch's advice to load the file unsafely."""
    line = " ".join(str(error).split())
    line = re.sub(r"^Weights only load failed\..*?(?=Trying to load|WeightsUnpickler error)", "", line)
    line = re.sub(r" (Check the documentation of torch\.load|Please use `torch\.serialization).*", "", line)
    return line[:200] or type(error).__name__
