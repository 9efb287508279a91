"""`lumos import-hf` and `lumos export-hf`: between the released format and checkpoints of our own.

Both go from views of the source's files straight to the disk, so a model of any size takes little
memory of its own (converting the dtype: a shard's worth); both write aside and rename.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lumos_pl.checkpoints.complete import sync_all
from lumos_pl.checkpoints.contents import FORMAT
from lumos_pl.checkpoints.decoder import StoredDecoder, Weights, open_decoder, with_adapters
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER, identity
from lumos_pl.checkpoints.digests import digest_file, lines_of
from lumos_pl.checkpoints.huggingface import CONFIG, INDEX, WEIGHTS, is_released, released_config
from lumos_pl.checkpoints.opening import PREFIXES
from lumos_pl.checkpoints.training_state import extremes
from lumos_pl.checkpoints.trouble import in_words
from lumos_pl.errors import CheckpointError, ConfigError, FileError
from lumos_pl.machinery.atomic_file import sync, write_new
from lumos_pl.machinery.own_files import delete, partial_of, put, remove_partials

Progress = Callable[[int, int], None]  # bytes written, of how many
_TAG = {"format": "pt"}  # the Hugging Face libraries refuse files without it


def import_released(folder: Path, out: Path, *, on_progress: Progress = lambda done, total: None) -> None:
    """Write a folder in the released format as one checkpoint file of ours, every tensor as it is.

    `init_from`, `load_decoder` and `export_released` take it like a run's.

    Raises:
        CheckpointError: the folder is damaged, hostile or of another architecture: nothing is written.
        FileError: the file cannot be written.
        ConfigError: `out` exists.
    """
    if not is_released(folder):
        raise CheckpointError(f"no {CONFIG}", file=folder, fix="give the folder of a released checkpoint")
    _refuse_existing(out)
    stored = open_decoder(folder)
    _write_checkpoint(out, stored, stored.tensors, on_progress)


def merge_adapters(
    source: Path,
    out: Path,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    weights: Weights = "model",
    dtype: torch.dtype | None = None,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Write a decoder and its adapters as one checkpoint file of ours, equal to what is sampled with them.

    Args:
        source: a run of an adapter, or the base of `adapters`.
        adapters: as `load_decoder` takes them.
        dtype: of all tensors; None: fp32 for the sums, and for the others what they have.
    Raises:
        CheckpointError: as `load_decoder`; or a weight is too large for `dtype`.
        FileError: the file cannot be written.
        ConfigError: `out` exists, or there is no adapter.
    """
    _refuse_existing(out)
    stored = open_decoder(source, weights=weights)
    if stored.adapter is None and not adapters:
        what, fix = "no adapter to merge", "name one: --adapter DIR"
        raise ConfigError(what, file=stored.file, where="--adapter", fix=fix)
    net, _ = with_adapters(stored, adapters, weights=weights)
    tensors = {name: parameter.detach() for name, parameter in net.named_parameters()}
    _check_fits(tensors, dtype, stored.file)
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    _write_checkpoint(out, stored, tensors, on_progress)


def _check_fits(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, file: Path) -> None:
    """Raise CheckpointError for a number that would become infinite; such a file would be refused when it is read."""
    for name, tensor in tensors.items():
        if dtype is None or torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
            continue
        largest = torch.tensor(max(extremes(tensor), key=abs), dtype=torch.float64)
        if not largest.to(dtype).isfinite():
            what, got = f"a weight too large for {str(dtype).removeprefix('torch.')}", f"{largest.item():g}"
            expected, fix = f"at most {torch.finfo(dtype).max:g}", "give another --dtype"
            raise CheckpointError(what, file=file, where=name, got=got, expected=expected, fix=fix)


def _refuse_existing(out: Path) -> None:
    for file in out, digest_file(out):
        if os.path.lexists(file):
            raise ConfigError("this file exists", file=file, where="--out", fix="give another name, or remove it")


def _write_checkpoint(out: Path, stored: StoredDecoder, tensors: Mapping[str, Tensor], on_progress: Progress) -> None:
    content = {
        "state_dict": {PREFIXES["model"] + name: tensor for name, tensor in tensors.items()},
        "lumos": {
            "format": FORMAT,
            "config": _without_adapter(stored.config),
            "identity": {
                **identity(stored.layout, stored.model),
                "data": {VISUAL_TOKENIZER: stored.visual_tokenizer},
            },
        },
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    with (
        _written_aside(out, digested=True) as partial,
        _CountedFile(partial, lambda done: on_progress(min(done, total), total)) as stream,
    ):
        torch.save(content, stream)


def _without_adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as that of a decoder which holds the sum."""
    return {name: section for name, section in config.items() if name != "adapter"}


def export_released(
    source: Path,
    out: Path,
    *,
    weights: Weights = "model",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Write the decoder of any checkpoint as a folder in the released format.

    Args:
        dtype: of all tensors; None keeps each one's.
        max_shard_bytes: weights of more become several files (a larger tensor has one of its own).
    Raises:
        CheckpointError: the checkpoint cannot be read, or a weight is too large for `dtype`.
        FileError: the folder cannot be written.
        ConfigError: `out` is there and not an empty folder.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError("not an empty folder", file=out, where="--out", fix="give another one")
    stored = open_decoder(source, weights=weights)
    tensors = {name: parameter.detach() for name, parameter in stored.build().named_parameters()}
    _check_fits(tensors, dtype, stored.file)
    n_bytes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in tensors.items()}
    files = _shards(n_bytes, max_shard_bytes)
    total, done = sum(n_bytes.values()), 0
    with _written_aside(out, digested=False) as partial:
        partial.mkdir()
        kept = dtype or tensors["lm_head.weight"].dtype
        run = _without_adapter(stored.config)
        config = released_config(stored.layout, stored.model, kept, run, stored.visual_tokenizer)
        _write_json(partial / CONFIG, config)
        for file, names in files.items():
            whole = {name: tensors[name].to(dtype or tensors[name].dtype) for name in names}
            save_file(_apart(whole), partial / file, _TAG)
            shutil.copymode(partial / CONFIG, partial / file)  # safetensors keeps its files to their owner
            done += sum(n_bytes[name] for name in names)
            on_progress(done, total)
        if len(files) > 1:
            weight_map = {name: file for file, names in files.items() for name in names}
            _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def parse_size(text: str) -> int:
    """Bytes in e.g. `5GB` or `500MB` (powers of 1000, as the Hugging Face libraries count)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(KB|MB|GB)", text)
    if match is None:
        raise ConfigError("not a size", where="--max-shard-size", got=repr(text)[:50], expected="e.g. 5GB or 500MB")
    return int(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def _shards(n_bytes: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """Names of the files, and of the tensors in each: in the model's order, cut before a file grows too large."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in n_bytes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem, ending = WEIGHTS.split(".")
    return {f"{stem}-{i:05d}-of-{len(shards):05d}.{ending}": names for i, names in enumerate(shards, start=1)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none in the memory of another as tied weights are: safetensors takes no such."""
    apart: dict[int, Tensor] = {}
    return {
        name: tensor if apart.setdefault(tensor.untyped_storage().data_ptr(), tensor) is tensor else tensor.clone()
        for name, tensor in tensors.items()
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


@contextmanager
def _written_aside(final: Path, *, digested: bool) -> Iterator[Path]:
    """A path to write a file or folder to, which takes its final name when all went well and is gone otherwise."""
    final = final.resolve() if final.exists() else final.absolute()  # no folder is made at the end of a link
    partial = partial_of(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(final.parent, of=lambda name: name == final.name)  # of one that was killed
        yield partial
        with suppress(OSError):
            final.rmdir()  # an empty folder
        if digested:
            write_new(digest_file(final), lines_of(partial, final.name))
        sync_all(partial)
        put(partial, final, own=lambda found: False)
        sync(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save turns a full disk into the second
        fix = "nothing is left of it: free some space, or choose another place"
        raise FileError("cannot be written", file=final, got=in_words(error), fix=fix) from error
    finally:
        delete(partial)


class _CountedFile(io.BufferedWriter):
    """A new file that tells how much was written to it."""

    def __init__(self, file: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(file, "x"))
        self.on_bytes, self.done = on_bytes, 0

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self.done += written
        self.on_bytes(self.done)
        return written
