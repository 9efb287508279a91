"""Sharded checkpoints: folders written by torch.distributed.checkpoint, one file per rank.

    step-00000100.ckpt/.metadata      which tensor lies where: a pickle
                       __0_0.distcp   a rank's tensors and plain values one after another, each an archive of torch's
                       meta.pt        the rest of Lightning's checkpoint

torch unpickles the first without restriction and takes its word for where and what everything is, so `read_metadata`
goes through all of it first.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import pickle
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from lumos_pl.checkpoints.digests import digest_of_file
from lumos_pl.checkpoints.plain_content import check_plain
from lumos_pl.checkpoints.records import View, check_archive, in_short
from lumos_pl.checkpoints.training_state import FLOATS, extremes
from lumos_pl.checkpoints.verdicts import verdict_on
from lumos_pl.errors import CheckpointError, DataError, LumosError
from lumos_pl.machinery.regular_file import open_regular, read_regular, size_of
from lumos_pl.machinery.retrying import passes

METADATA = ".metadata"
STATE = "state_dict."  # before the names of the module's tensors
OPTIMIZER = "optimizer_0."  # before those of the optimizer's

# All that torch 2.13 writes into .metadata; nothing here does anything but hold values.
_ADMITTED = {
    "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath"},
}
_MOST_BYTES = 256 << 20  # of .metadata
_PART_BYTES = 16 << 20  # that are digested at once


class _Place(Protocol):
    """Where a value lies, as torch's `_StorageInfo` says it."""

    relative_path: str
    offset: int
    length: int


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ADMITTED.get(module, set()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def is_sharded(path: Path) -> bool:
    return (path / METADATA).exists() and path.is_dir()


def writer_of(name: str) -> int:
    """The rank that wrote a file of a sharded checkpoint: __RANK_N.distcp; all others are rank 0's."""
    match = re.match(r"__(\d{1,9})_", name)
    return int(match[1]) if match else 0


def sharded_content(folder: Path) -> dict[str, Any]:
    """What stands for a training's "state_dict" and "optimizer_states" in a sharded checkpoint.

    Tensors are on the meta device, without memory, but for the optimizer's single numbers; its parameters go by their
    names.

    Raises:
        CheckpointError: with the file, and the tensor or value in it that is not what it should be.
    """
    metadata = read_metadata(folder)
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    for index, stored in metadata.storage_data.items():
        name, entry = index.fqn, metadata.state_dict_metadata[index.fqn]
        if isinstance(entry, BytesStorageMetadata):
            plain[name] = _plain_value(folder / stored.relative_path, stored, name)
        elif name.startswith(OPTIMIZER) and not entry.size:  # a count of its steps
            tensors[name] = _plain_value(folder / stored.relative_path, stored, name)
    content: dict[str, Any] = {"state_dict": {}}
    for name, tensor in tensors.items():
        if name.startswith(STATE):
            content["state_dict"][name.removeprefix(STATE)] = tensor
    of_optimizer = {n.removeprefix(OPTIMIZER): v for n, v in {**tensors, **plain}.items() if n.startswith(OPTIMIZER)}
    if of_optimizer:
        content["optimizer_states"] = [_optimizer_state(of_optimizer, folder / METADATA)]
    return content


def _optimizer_state(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """As an optimizer saves it, of what was made flat: `state.PARAMETER.NAME` and `param_groups.NUMBER.NAME`."""
    state: dict[str, dict[str, Any]] = defaultdict(dict)
    groups: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        match name.split("."):
            case ["state", *parameter, of_it] if parameter:
                state[".".join(parameter)][of_it] = value
            case ["param_groups", number, setting] if number.isascii() and number.isdecimal() and len(number) < 9:
                groups[int(number)][setting] = value
            case _:
                raise CheckpointError("not a value of an optimizer", file=file, where=f"{OPTIMIZER}{name}"[:200])
    if sorted(groups) != list(range(len(groups))):
        raise CheckpointError("a group of parameters is missing", file=file, where=f"{OPTIMIZER}param_groups")
    return {"state": dict(state), "param_groups": [groups[number] for number in sorted(groups)]}


def read_metadata(folder: Path) -> Metadata:
    """Which tensor lies where, once it is known that nothing of a sharded checkpoint is executed when it is loaded.

    Raises:
        CheckpointError: with the file: what is not plain, reaches beyond its file, lies in another value, or does not
            cover its tensor exactly once.
    """
    metadata, regions = _listed(folder)
    known = verdict_on(folder)
    if known is None or not known.looked_through:
        for file, of_file in regions.items():
            with _located(file):
                _read_through(file, of_file, metadata)
    return metadata


class FolderReader:
    """Reads the files of a sharded checkpoint, each once: for its digest, and for what it should hold.

    Raises:
        CheckpointError: as `read_metadata` does.
    """

    def __init__(self, folder: Path) -> None:
        self._metadata, self._regions = _listed(folder)

    def digest_and_check(self, file: Path) -> tuple[str, CheckpointError | None]:
        """The sha256 of a file of it, and the first thing in it that is not what the metadata say."""
        found = hashlib.sha256()
        odd: CheckpointError | None = None
        try:
            with _located(file):
                _read_through(file, self._regions.get(file, []), self._metadata, found.update)
        except CheckpointError as error:
            odd = error
            if passes(error):
                raise
            return digest_of_file(file), odd
        return found.hexdigest(), odd


_Region = tuple[int, int, MetadataIndex]  # from where, how many bytes, of what


@contextmanager
def _located(file: Path) -> Iterator[None]:
    """Say in which file something is refused."""
    try:
        yield
    except LumosError as error:
        raise CheckpointError(**error.parts | {"file": error.file or file}) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError("checkpoint refused", file=file, got=in_short(error)) from None


def _listed(folder: Path) -> tuple[Metadata, dict[Path, list[_Region]]]:
    """The metadata, once they are known to be sound, and what they say of each file, in its order."""
    file = folder / METADATA
    with _located(file):
        metadata = _MetadataUnpickler(io.BytesIO(read_regular(file, at_most=_MOST_BYTES))).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        stored: dict[MetadataIndex, _Place] = metadata.storage_data
        for place in stored.values():
            part = folder / place.relative_path
            with _located(part):
                if part.parent != folder or part.is_symlink():  # the ranks' files stand side by side
                    raise pickle.UnpicklingError("it points to another folder")
        _check_chunks(metadata)
        regions: dict[Path, list[_Region]] = defaultdict(list)
        for index, place in stored.items():
            regions[folder / place.relative_path].append((*_region(place), index))
        for of_file in regions.values():
            of_file.sort(key=lambda region: region[:2])
        return metadata, regions


def _region(place: _Place) -> tuple[int, int]:
    numbers = place.offset, place.length
    transformed = getattr(place, "transform_descriptors", None)
    if transformed or any(type(number) is not int or number < 0 for number in numbers):
        raise DataError("a value at no place of a file", where=str(place.relative_path)[:100], got=repr(numbers)[:100])
    return numbers


def _check_chunks(metadata: Metadata) -> None:
    """Refuse tensors that are not covered by their parts exactly, and parts that have no place in a file."""
    wanted: set[tuple[str, tuple[int, ...] | None]] = set()
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            wanted |= {(name, tuple(chunk.offsets)) for chunk in entry.chunks}
            boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
            if type(name) is not str or not _covers(boxes, tuple(entry.size)):
                raise DataError("the parts of a tensor are not the tensor", where=str(name)[:200])
            if not isinstance(entry.properties.dtype, torch.dtype):
                raise DataError("a tensor of no kind", where=name[:200])
        elif isinstance(entry, BytesStorageMetadata):
            wanted.add((name, None))
        else:
            raise DataError("neither a tensor nor a value", where=str(name)[:200], got=type(entry).__name__)
    got = {(i.fqn, None if i.offset is None else tuple(i.offset)) for i in metadata.storage_data}
    for fqn, _ in wanted ^ got:
        raise DataError("a value is listed and not stored, or stored and not listed", where=str(fqn)[:200])


def _covers(boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], size: tuple[int, ...]) -> bool:
    """Whether boxes, each by its offsets and sizes, fill a tensor of this size and do not overlap."""
    for offsets, sizes in boxes:
        if not len(offsets) == len(sizes) == len(size) or any(type(n) is not int or n < 0 for n in (*offsets, *sizes)):
            return False
        if any(o + n > whole for o, n, whole in zip(offsets, sizes, size, strict=True)):
            return False
    filled = [box for box in boxes if 0 not in box[1]]
    for one, other in itertools.combinations(filled, 2):  # a scalar's overlap always
        if all(a < b + m and b < a + n for a, n, b, m in zip(*one, *other, strict=True)):
            return False
    return sum(math.prod(sizes) for _, sizes in filled) == math.prod(size)


def _read_through(
    file: Path, regions: list[_Region], metadata: Metadata, digest: Callable[[bytes], object] | None = None
) -> None:
    """Refuse a rank's file unless each value's region is its own, and holds just what the metadata say.

    Args:
        digest: is given all bytes of the file, in their order, if they are as they should be.
    """
    with open_regular(file, at_most=None, error=CheckpointError) as stream:
        end_of_file = size_of(stream)
        reached = 0
        for offset, length, index in regions:
            if offset < reached or offset + length > end_of_file:
                raise CheckpointError(
                    "a value overlaps another, or its file ends in it", file=file, where=index.fqn[:200]
                )
            entry = metadata.state_dict_metadata[index.fqn]
            is_tensor = isinstance(entry, TensorStorageMetadata)
            if digest is not None:
                _pass_on(stream, offset - reached, digest)
            if is_tensor or digest is not None:
                stream.seek(offset)
                data = stream.read(length)
                if digest is not None:
                    digest(data)
                if isinstance(entry, TensorStorageMetadata):
                    _check_tensor(data, entry, index, file)
            reached = offset + length
        if digest is not None:
            _pass_on(stream, end_of_file - reached, digest)


def _pass_on(stream: BufferedReader, n_bytes: int, digest: Callable[[bytes], object]) -> None:
    while n_bytes and (data := stream.read(min(n_bytes, _PART_BYTES))):
        digest(data)
        n_bytes -= len(data)


def _check_tensor(data: bytes, entry: TensorStorageMetadata, index: MetadataIndex, file: Path) -> None:
    view = check_archive(io.BytesIO(data), file)
    (chunk,) = (chunk for chunk in entry.chunks if chunk.offsets == index.offset)
    expected = entry.properties.dtype, tuple(chunk.sizes)
    got = (view.dtype, view.size) if isinstance(view, View) else None
    if got != expected:
        words = "no tensor" if got is None else f"{got[0]} {list(got[1])}"
        raise CheckpointError(
            "another tensor than is listed",
            file=file,
            where=index.fqn[:200],
            got=words,
            expected=f"{expected[0]} {list(expected[1])}",
        )
    tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if tensor.dtype in FLOATS and not all(map(math.isfinite, extremes(tensor))):
        what = "numbers that are not finite"
        raise CheckpointError(what, file=file, where=index.fqn[:200], got="NaN or infinity")


def _plain_value(file: Path, place: _Place, name: str) -> Any:
    try:
        with file.open("rb") as stream:
            stream.seek(place.offset)
            data = stream.read(place.length)
        check_archive(io.BytesIO(data), file)
        value = torch.load(io.BytesIO(data), weights_only=True)
    except LumosError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError("checkpoint refused", file=file, got=in_short(error)) from None
    check_plain({name: value}, file=file)
    return value


def load_sharded_tensors(parameters: Iterable[tuple[str, Tensor]], folder: Path, prefix: str) -> None:
    """Fill tensors, sharded or whole, by their names behind a prefix, from a checkpoint made on any number of ranks."""
    read_metadata(folder)
    weights = {prefix + name: parameter.detach() for name, parameter in parameters}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is as good
            dcp.state_dict_loader.load({"state_dict": weights}, checkpoint_id=folder)
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is not one of the former
        raise CheckpointError("weights do not fit", file=folder, got=in_short(error)) from None
