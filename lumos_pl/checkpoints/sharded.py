"""Sharded checkpoints: folders written by torch.distributed.checkpoint, one file per rank.

    step-00000100.ckpt/.metadata      which tensor lies where: a pickle
                       __0_0.distcp   a rank's tensors, and its plain values as pickles
                       meta.pt        the rest of Lightning's checkpoint

torch unpickles all of them without restriction, so `check_pickles` goes through them first.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from lumos_pl.checkpoints.complete import in_short
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer

METADATA = ".metadata"
PLAIN_VALUES = "meta.pt"  # by this name Lightning reads it
STATE = "state_dict."  # before the names of the module's tensors

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


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ADMITTED.get(module, set()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def is_sharded(path: Path) -> bool:
    return (path / METADATA).is_file()


def check_pickles(folder: Path) -> Metadata:
    """Raise CheckpointError, naming the file, if anything in a sharded checkpoint would be executed on loading.

    Returns:
        which tensor lies where.
    """
    file = folder / METADATA
    try:
        metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        for index, stored in (metadata.storage_data or {}).items():
            file = folder / stored.relative_path
            if file.parent != folder or file.is_symlink():  # the ranks' files stand side by side
                raise pickle.UnpicklingError("it points to another folder")
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with file.open("rb") as stream:
                    stream.seek(stored.offset)
                    torch.load(io.BytesIO(stream.read(stored.length)), weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError("checkpoint refused", file=file, got=in_short(error)) from None
    return metadata


def describe_sharded_weights(folder: Path) -> dict[str, Tensor]:
    """The module's tensors in a sharded checkpoint, without memory: on the meta device."""
    entries = check_pickles(folder).state_dict_metadata.items()
    try:
        return {
            name.removeprefix(STATE): torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in entries
            if name.startswith(STATE) and isinstance(entry, TensorStorageMetadata)
        }
    except Exception as error:  # its parts may be of any type
        raise CheckpointError("checkpoint cannot be read", file=folder / METADATA, got=in_short(error)) from None


def load_sharded_weights(net: LumosTransformer, folder: Path, prefix: str) -> None:
    """Fill a decoder, sharded or whole, from a run's sharded checkpoint made on any number of ranks."""
    check_pickles(folder)
    weights = {prefix + name: parameter.detach() for name, parameter in net.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process is as good
            dcp.state_dict_loader.load({"state_dict": weights}, checkpoint_id=folder)
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is not one of the former
        raise CheckpointError("weights do not fit", file=folder, got=in_short(error)) from None
