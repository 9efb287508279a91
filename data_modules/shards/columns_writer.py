"""Gathers what is known of samples as they are written, and makes the file of their columns, see metadata.py."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, with_config
from typing_extensions import TypedDict

from data_modules.shards.sample import Scalar, ShardSample, text_length
from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import Count
from lumos_pl.tokenizers.text import TextTokenizer

MOST_COLUMNS = 1024

Places = NDArray[np.unsignedinteger]


@with_config(extra="forbid")
class ColumnsHeader(TypedDict):
    format: Literal["lumos-columns-1"]
    n_samples: Count
    columns: Annotated[list[str], Field(max_length=MOST_COLUMNS)]
    captions: Annotated[list[str], Field(max_length=MOST_COLUMNS)]
    text_tokenizer: str | None


def longest_caption(sample: ShardSample, text_tokenizer: TextTokenizer | None) -> int:
    """The ids of a sample's longest caption; of ids by themselves how many there are; 0: nothing counts them."""
    if text_tokenizer is None:
        return 0
    captions = [text for text in sample.texts() if isinstance(text, str)]
    return max((len(text_tokenizer.encode(caption)) for caption in captions), default=text_length(sample))


@dataclass(kw_only=True)
class Known:
    """What is known of a shard's samples, as plain values: of each its metadata, and the ids of its longest caption."""

    captions: list[str] = field(default_factory=list)
    metadata: list[dict[str, str | int | float | bool]] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)

    def add(self, sample: ShardSample, text_ids: int) -> None:
        self.captions = sorted({*self.captions, *sample.captions})
        self.metadata.append(dict(sample.metadata))
        self.text_ids.append(text_ids)

    @property
    def plain(self) -> dict[str, list[Any]]:
        """What of it there is; the lists of which nothing is known are not named."""
        return {name: values for name, values in vars(self).items() if any(values)}


class ColumnsWriter:
    """Gathers the columns of samples as they are written.

    Args:
        text_tokenizer: fingerprint of what counts the ids that `add` is given; None: none are.
    """

    def __init__(self, text_tokenizer: str | None = None) -> None:
        self.n_samples = 0
        self._text_tokenizer = text_tokenizer
        self._text_ids = array("I")
        self._captions: set[str] = set()
        self._columns: dict[str, tuple[dict[tuple[type, Scalar], int], array[int]]] = {}

    def add(self, metadata: Mapping[str, Scalar], captions: Iterable[str], text_ids: int = 0) -> None:
        """What is known of the next sample.

        Args:
            captions: of several, the names.
            text_ids: of the longest caption, where a text tokenizer counts them.
        """
        self._captions.update(captions)
        for name, value in metadata.items():
            if name not in self._columns and len(self._columns) == MOST_COLUMNS:
                raise DataError("too many columns", where=f"metadata.{name}", expected=f"at most {MOST_COLUMNS}")
            table, places = self._columns.setdefault(name, ({}, array("I")))
            places.extend([0] * (self.n_samples - len(places)))
            places.append(table.setdefault((type(value), value), len(table) + 1))  # for Python, 1 is true
        self._text_ids.append(text_ids)
        self.n_samples += 1

    @property
    def content(self) -> bytes | None:
        """Of the file; None: the samples have nothing to put there."""
        if not self._columns and not self._captions and self._text_tokenizer is None:
            return None
        columns = {}
        for name, (table, places) in self._columns.items():
            filled = np.zeros(self.n_samples, np.uint32)
            filled[: len(places)] = places
            columns[name] = [value for _, value in table], filled
        return columns_content(
            self.n_samples,
            columns,
            sorted(self._captions),
            self._text_tokenizer,
            None if self._text_tokenizer is None else np.array(self._text_ids, np.uint32),
        )


def columns_content(
    n_samples: int,
    columns: Mapping[str, tuple[Sequence[Scalar], Places]],
    captions: Sequence[str],
    text_tokenizer: str | None,
    text_ids: NDArray[np.uint32] | None,
) -> bytes:
    header = ColumnsHeader(
        format="lumos-columns-1",
        n_samples=n_samples,
        columns=list(columns),
        captions=list(captions),
        text_tokenizer=text_tokenizer,
    )
    arrays: dict[str, NDArray[np.unsignedinteger]] = {"header": _as_bytes(header)}
    for number, (values, places) in enumerate(columns.values()):
        arrays[f"values-{number}"] = _as_bytes(list(values))
        arrays[f"places-{number}"] = places.astype(np.min_scalar_type(len(values)))
    if text_ids is not None:
        arrays["text_ids"] = text_ids
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # not compressed: which bytes that gives depends on the library
    return buffer.getvalue()


def _as_bytes(content: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content, ensure_ascii=False).encode(), np.uint8)
