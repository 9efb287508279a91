"""One sample of a shard, and what it must be."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from data_modules.shards.manifest import Shape
from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import wrong

Text = str | tuple[int | str, ...]
Scalar = str | int | float | bool  # a value of metadata

FRAMES, FPS = "{frames}", "{fps}"  # stand among text ids for numbers that cutting a clip changes

KEY_CHARACTERS = 80  # a tar name has 100 bytes
KEY = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{KEY_CHARACTERS - 1}}}")  # no dot: WebDataset splits there
NUMBERS = ("frames", "fps", "duration", "width", "height")
EXTRAS = ("captions", "metadata", "start_s")  # fields that only samples which have some are written with


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSample:
    """One video or image as codes.

    Args:
        key: its name, unique in the data set.
        codes: uint16 [T, H, W].
        text: a caption, or text ids in which "{frames}" and "{fps}" stand where the number of
            frames and the rate are to be written in digits.
        frames: RGB frames that the codes cover.
        fps: frames per second.
        duration: whole seconds.
        width, height: px.
        source: where it came from.
        captions: where it has several, each by the name of its column; `text` is the first of them.
        metadata: what else is known of it, by name: see `metadata`.
        start_s: where in its video it starts, in seconds from the first frame, if it is one clip of several.
    """

    key: str
    codes: NDArray[np.uint16]
    text: Text
    frames: int
    fps: int
    duration: int
    width: int
    height: int
    source: str
    captions: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    start_s: float | None = None

    def texts(self) -> tuple[Text, ...]:
        """Every text that may be drawn for it, once."""
        return tuple(dict.fromkeys((self.text, *self.captions.values())))


class SampleFields(TypedDict):
    """What JSON of ours holds of a sample whose codes stand elsewhere, see `ShardSample`."""

    text: str | list[int | str]
    frames: int
    fps: int
    duration: int
    width: int
    height: int
    source: str
    captions: NotRequired[dict[str, str]]
    metadata: NotRequired[dict[str, str | int | float | bool]]
    start_s: NotRequired[float]


def plain_fields(sample: ShardSample) -> dict[str, Any]:
    """`SampleFields` of a sample, for JSON: what it does not have is not named."""
    fields = {name: getattr(sample, name) for name in ("text", *NUMBERS, "source")}
    extras: dict[str, Any] = {"captions": dict(sample.captions), "metadata": dict(sample.metadata)}
    fields |= {name: value for name, value in extras.items() if value}
    return fields if sample.start_s is None else fields | {"start_s": sample.start_s}


def sample_of(fields: SampleFields, *, key: str, codes: NDArray[np.uint16]) -> ShardSample:
    """The sample that has these fields; the inverse of `plain_fields`."""
    text = fields["text"] if isinstance(fields["text"], str) else tuple(fields["text"])
    numbers = {name: fields[name] for name in (*NUMBERS, "source")}  # type: ignore[literal-required]
    extras: dict[str, Any] = {name: fields[name] for name in EXTRAS if name in fields}  # type: ignore[literal-required]
    return ShardSample(key=key, codes=codes, text=text, **numbers, **extras)


def one_name(name: str, folder: str) -> str:
    """One name of a file for all spellings of its path: as it is from the folder on, where it lies inside it.

    Args:
        folder: of the list, absolute. Nothing is looked up in it: a link is a name of its own.
    """
    name = os.path.normpath(name)
    return name.removeprefix(folder.rstrip("/") + "/") if name.startswith("/") else name


def sample_key(name: str, *more: str) -> str:
    """A key from a path: its readable characters, and a digest that keeps unlike paths, or unlike `more`, apart."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name.rpartition(".")[0]).strip("-")[-60:].strip("-")
    return f"{readable or 'sample'}-{key_number(name, *more):016x}"


def key_number(name: str, *more: str) -> int:
    """The 64 bits of the digest that `sample_key` ends with: less to keep of ten million samples than their keys."""
    return int.from_bytes(hashlib.sha256(os.fsencode("\0".join([name, *more]))).digest()[:8])


def resolve_text(text: tuple[int | str, ...], *, frames: int, fps: int, digit_offset: int) -> tuple[int, ...]:
    """Text ids with the numbers written out: decimal digit d is the id `digit_offset + d`."""
    numbers = {FRAMES: frames, FPS: fps}
    ids: list[int] = []
    for item in text:
        ids += [item] if isinstance(item, int) else [digit_offset + int(digit) for digit in str(numbers[item])]
    return tuple(ids)


def text_length(sample: ShardSample) -> int:
    """See `ShardEntry.text_lengths`: of several captions the longest counts."""
    if isinstance(sample.text, str):
        return max(len(text.encode()) for text in sample.texts() if isinstance(text, str))
    return len(resolve_text(sample.text, frames=sample.frames, fps=sample.fps, digit_offset=0))


def check_sample(sample: ShardSample, codebook_size: int, strides: Shape) -> None:
    """Every field of a sample by itself, and the sizes in px and frames against the codes.

    Raises:
        DataError: the first field that is wrong.
    """
    if not KEY.fullmatch(sample.key):
        raise wrong("key", sample.key, f"text like {KEY.pattern}")
    for name in NUMBERS:
        value = getattr(sample, name)
        if type(value) is not int or value < 1:
            raise wrong(name, value, "an integer of at least 1")
    if sample.start_s is not None and not 0 <= sample.start_s < math.inf:
        raise wrong("start_s", sample.start_s, "seconds, 0 or more")
    _check_text(sample.text)
    check_characters("source", sample.source)
    check_captions(sample)
    check_metadata(sample.metadata)
    _check_codes(sample.codes, codebook_size)
    t, h, w = strides
    for where, cells, size, expected in (
        ("frames", sample.codes.shape[0], sample.frames, 1 - (1 - sample.frames) // t),  # the first frame stands alone
        ("height", sample.codes.shape[1] * h, sample.height, sample.height),
        ("width", sample.codes.shape[2] * w, sample.width, sample.width),
    ):
        if cells != expected:
            raise DataError(
                "codes of another size",
                where=where,
                got=f"{size} beside codes {list(sample.codes.shape)}",
                expected=f"agreement under the strides {t}, {h}, {w}",
            )


def _check_codes(codes: NDArray[np.uint16], codebook_size: int) -> None:
    if codes.dtype != np.uint16 or codes.ndim != 3 or codes.size == 0:
        got = f"{codes.dtype} {list(codes.shape)}"
        raise DataError("wrong codes", where="codes", got=got, expected="uint16 [T, H, W]")
    if int(codes.max()) >= codebook_size:
        t, h, w = np.argwhere(codes >= codebook_size)[0]
        raise DataError(
            "code outside the codebook",
            where=f"codes[{t}, {h}, {w}]",
            got=codes[t, h, w],
            expected=f"0 to {codebook_size - 1}",
        )


def _check_text(text: object) -> None:
    if isinstance(text, str):
        return check_characters("text", text)
    if not isinstance(text, tuple) or not text:
        raise wrong("text", text, "a caption, or a list of ids")
    for position, item in enumerate(text):
        if item not in (FRAMES, FPS) and (type(item) is not int or item < 0):
            raise wrong(f"text[{position}]", item, f"an id, {FRAMES} or {FPS}")


def check_captions(sample: ShardSample) -> None:
    """Raise DataError unless each of several captions is one, and the sample's text is among them."""
    for name, caption in sample.captions.items():
        check_characters("captions", name)
        check_characters(f"captions.{name}", caption)
    if sample.captions and sample.text not in sample.captions.values():
        raise DataError("a text that is none of the captions", where="text", expected=", ".join(sample.captions))


def check_metadata(metadata: Mapping[str, object]) -> None:
    """Raise DataError unless every value is a text, a finite number, true or false, under a name."""
    for name, value in metadata.items():
        check_characters("metadata", name)
        if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
            raise wrong(f"metadata.{name}", value, "text, a finite number, true or false")
        if isinstance(value, str):
            _check_unicode(f"metadata.{name}", value)


def check_characters(where: str, text: object) -> None:
    """Raise DataError unless `text` is a string that can be a caption or the name of a source."""
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise wrong(where, text, "text, not empty, without NUL")
    _check_unicode(where, text)


def _check_unicode(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(where, text, "characters that UTF-8 can encode") from error
