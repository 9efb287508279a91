"""Import of the release's pre-tokenized files: pickles in, shards out, nothing executed.

A file is a pickled dict {"token": [ids], "label": [ids], "id": int}: one closed sequence in the
layout `lumos1` whose text holds two placeholder ids for numbers, and labels that are -100 up to the
text's SEP and the token itself from VIDEO_START on.
"""

from __future__ import annotations

import io
import os
import pickle
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Never

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.shards.manifest import Manifest
from data_modules.shards.reading import read_listed
from data_modules.shards.sample import FPS, FRAMES, ShardSample, one_name, sample_key
from data_modules.shards.writer import write_by_kind
from lumos_pl.errors import DataError, located
from lumos_pl.layout import TokenLayout, lumos1_layout
from lumos_pl.machinery.json_file import first_repeated, read_json, wrong
from lumos_pl.machinery.regular_file import read_regular

COSMOS_TOKENIZER = "cosmos-dv4x8x8"  # fingerprint of the visual tokenizer that made the release's codes
MAX_PICKLE_BYTES = 64 << 20  # 70 times the release's 7-second clips
NO_LABEL = -100

# They collide with visual ids, and mean this in the text part only.
_PLACEHOLDERS: dict[int, str] = {65_539: FRAMES, 65_540: FPS}

_FIELDS = {"token", "label", "id"}
_PICKLE_SUFFIXES = {".pkl", ".pickle"}
_PATH_FIELDS = ("file", "path")  # of an object in a merge record


def import_release_tokens(
    source: Path,
    out: Path,
    *,
    samples_per_shard: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Manifest]:
    """Write the release's files as shards: images to `out/images`, videos to `out/videos`.

    A file that is refused, or an interrupt, leaves no shards in either folder.

    Args:
        source: a pickle, a folder of pickles, or a merge record (JSON) that lists them.
        samples_per_shard: see `ShardWriter`.
        on_progress: called with (files done, files in all).
    Returns:
        the manifest of each folder that was written, by its name.
    Raises:
        DataError: the first file that is not as it should be.
    """
    layout = lumos1_layout()
    files = _list_files(source)

    def samples() -> Iterator[ShardSample]:
        for done, (name, path) in enumerate(files, start=1):
            with located(path):
                yield _read_sample(name, path, layout)
            if on_progress is not None:
                on_progress(done, len(files))

    return write_by_kind(
        out,
        samples(),
        tokenizer=COSMOS_TOKENIZER,
        codebook_size=layout.codebook_size,
        strides=layout.strides,
        samples_per_shard=samples_per_shard,
        expected=len(files),
    )


# -- which files ---------------------------------------------------------------------------------


def _list_files(source: Path) -> list[tuple[str, Path]]:
    """Name and path of every pickle, sorted by name: its path in the folder, or as the record has it."""
    if source.is_dir():
        paths = [path for path in source.rglob("*") if path.suffix in _PICKLE_SUFFIXES and path.is_file()]
        files = [(path.relative_to(source).as_posix(), path) for path in paths]
    elif not source.is_file():
        raise DataError("no such file or folder", file=source)
    elif source.suffix == ".json":
        with located(source):
            names, folder = _read_record(source), os.path.abspath(source.parent)  # noqa: PTH100 (links are names)
            if repeated := first_repeated(one_name(name, folder) for name in names):
                raise DataError("listed twice", got=repeated, expected="each file once, however its path is spelled")
            files = [(name, source.parent / name) for name in names]
    else:
        files = [(source.name, source)]
    if not files:
        expected = "files named *.pkl or *.pickle"
        raise DataError(
            "no token files", file=source, expected=expected, fix="name their folder or a merge-record.json"
        )
    return sorted(files)


def _read_record(path: Path) -> list[str]:
    """The paths in a merge record: a list of objects, or an object that holds one such list."""
    record: object = read_listed(lambda: read_json(path, object), path)
    if isinstance(record, dict):
        lists = [value for value in record.values() if isinstance(value, list)]
        record = lists[0] if len(lists) == 1 else record
    if not isinstance(record, list):
        raise DataError("not a merge record", got=reprlib.repr(record), expected="a list, or an object with one list")
    names = []
    for position, item in enumerate(record):
        found = [item[field] for field in _PATH_FIELDS if field in item] if isinstance(item, dict) else [item]
        if len(found) != 1 or not isinstance(found[0], str):
            raise wrong(f"item {position}", item, f"a path, or an object with one under {' or '.join(_PATH_FIELDS)}")
        names.append(found[0])
    return names


# -- one file ------------------------------------------------------------------------------------


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers and strings; anything more needs a class, and none is to be had."""

    def find_class(self, module: str, name: str) -> Never:
        raise DataError(
            "hostile or foreign pickle, refused",
            got=f"it tries to load {reprlib.repr(module)}.{reprlib.repr(name)}",
            expected="dict, list, int and str only",
        )


def read_plain_pickle(path: Path) -> object:
    """The dicts, lists, numbers and strings in a pickle of bounded size.

    Raises:
        DataError: what a hostile file tried to load, or how a damaged one ends.
    """
    data = read_listed(lambda: read_regular(path, at_most=MAX_PICKLE_BYTES), path)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except DataError:
        raise
    except Exception as error:  # the unpickler raises many kinds at damaged bytes
        raise DataError("not a whole pickle", got=repr(error)) from error


def _read_sample(name: str, path: Path, layout: TokenLayout) -> ShardSample:
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or set(content) != _FIELDS or type(content["id"]) is not int:
        raise DataError(
            "not a token file", got=type(content).__name__, expected="a dict of token, label and id (an int)"
        )
    tokens, labels = (_id_list(field, content[field]) for field in ("token", "label"))

    filler = layout.digit_offset
    assert filler is not None, "the release's layout has digits"
    start = int(np.argmax(tokens == layout.video_start))  # 0 where there is none: left to the parser
    in_text = {i: _PLACEHOLDERS[int(tokens[i])] for i in range(start) if int(tokens[i]) in _PLACEHOLDERS}
    readable = tokens.copy()
    readable[list(in_text)] = filler
    sequence = layout.parse(torch.from_numpy(readable))
    if not sequence.text_ids:
        raise DataError("sequence without a text")
    _check_labels(labels, np.where(np.arange(len(tokens)) < start, NO_LABEL, tokens))

    frames = sequence.duration * sequence.fps
    shape = tuple(sequence.codes.shape)
    if layout.latent_frames(frames) != shape[0]:
        raise DataError(
            "duration and fps disagree with the frames",
            got=f"{shape[0]} latent frames, {sequence.duration} s at {sequence.fps} fps",
            expected=f"{layout.latent_frames(frames)} latent frames",
        )
    return ShardSample(
        key=sample_key(name),
        codes=sequence.codes.numpy().astype(np.uint16),
        text=tuple(in_text.get(i, token) for i, token in enumerate(sequence.text_ids, start=1)),
        frames=frames,
        fps=sequence.fps,
        duration=sequence.duration,
        width=shape[2] * layout.strides[2],
        height=shape[1] * layout.strides[1],
        source=name,
    )


def _id_list(field: str, value: object) -> NDArray[np.int64]:
    if not isinstance(value, list) or not value:
        raise DataError("wrong field", where=field, got=type(value).__name__, expected="a list that is not empty")
    if foreign := {type(item).__name__ for item in value} - {"int"}:
        raise DataError("wrong field", where=field, got=f"items of type {min(foreign)}", expected="integers")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise DataError("wrong field", where=field, got=error, expected="ids of the vocabulary") from error


def _check_labels(labels: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    if len(labels) != len(expected):
        raise DataError(
            "wrong labels", where="label", got=f"{len(labels)} labels", expected=f"{len(expected)}, one a token"
        )
    differ = np.flatnonzero(labels != expected)
    if differ.size:
        first = differ[0]
        raise DataError("wrong label", where=f"label[{first}]", got=labels[first], expected=expected[first])
