"""From words to text ids: the prompt around a caption, and the text tokenizers."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

from tokenizers import Encoding, Tokenizer

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.tokenizers import text_growth
from lumos_pl.tokenizers.text_growth import Growth

# The wording of the released models, for videos, and for images with 1 frame at 1 fps.
RELEASE_PROMPT = (
    "Generate a video with a resolution of {width}x{height}, consisting of {frames} frames "
    "at {fps} frames per second, according to the following prompt:\n {caption}"
)
PROMPT_FIELDS = ("width", "height", "frames", "fps", "caption")

# What a layout's markers are called in its text vocabulary, and who publishes that. For `lumos1` the release looks up
# its markers by these names.
MARKER_NAMES = {
    "lumos1": {
        "bos": "<s>",
        "sep": "<reserved08706>",
        "video_start": "<reserved09000>",
        "video_end": "<reserved09001>",
        "frame_start": "<racm3:break>",
        "frame_end": "<eoss>",
        "newline": "<reserved08799>",
        "mask": "<reserved08999>",
    }
}
PUBLISHED = {"lumos1": "Chameleon's, as published at https://huggingface.co/facebook/chameleon-7b"}
DIGITS = "0123456789"
BYTES = 256  # a text vocabulary of this size is UTF-8
MOST_BYTES = 256 << 20  # of a tokenizer.json; Chameleon's is a fiftieth of this
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's normalizers replace blanks by it


class PromptTemplate:
    """A text with {caption} and any of {width} {height} {frames} {fps}, each replaced by its plain value.

    `{{` and `}}` stand for braces. Nothing else of Python's format strings is supported: no attribute, index,
    conversion or format; and braces in a caption have no meaning.

    Raises:
        ConfigError: another field, not exactly one {caption}, or unbalanced braces.
    """

    def __init__(self, template: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise ConfigError(
                f"not a template: {error}", where="data.prompt", got=repr(template), fix="write {{ and }} for braces"
            ) from error
        for literal, name, spec, conversion in parsed:
            if name is not None and (name not in PROMPT_FIELDS or spec or conversion):
                field = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                expected = " ".join(f"{{{allowed}}}" for allowed in PROMPT_FIELDS)
                raise ConfigError("unknown field", where="data.prompt", got=f"{{{field}}}", expected=expected)
            self._parts.append((literal, name))
        captions = [name for _, name in self._parts].count("caption")
        if captions != 1:
            raise ConfigError("wrong prompt", where="data.prompt", got=f"{captions} {{caption}}", expected="one")

    def render(self, *, width: int, height: int, frames: int, fps: int, caption: str) -> str:
        """The prompt; sizes in pixels, `frames` in RGB frames."""
        values = {"width": width, "height": height, "frames": frames, "fps": fps, "caption": caption}
        return "".join(literal + ("" if name is None else str(values[name])) for literal, name in self._parts)

    @property
    def max_bytes(self) -> int:
        """Most UTF-8 bytes around the caption, for numbers of up to five digits."""
        return len(self._around(99_999).encode())

    def most_ids(self, tokenizer: TextTokenizer) -> int:
        """Most ids around the caption, for such numbers: one per byte, or more if the tokenizer lengthens texts."""
        return max(self.max_bytes, *(len(tokenizer.encode(self._around(int(5 * digit)))) for digit in DIGITS))

    def _around(self, number: int) -> str:
        return self.render(width=number, height=number, frames=number, fps=number, caption="")


class TextTokenizer(Protocol):
    """Turns text into ids of the layout's text vocabulary, without BOS and SEP.

    `fingerprint` names the mapping: equal fingerprints give equal ids. A text has at most as many ids as `growth_of`
    says: one per UTF-8 byte, unless the tokenizer says otherwise.
    """

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]: ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255; needs no file."""

    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the Hugging Face `tokenizers` library, read without executing any code in it.

    Special tokens are not added: BOS and SEP belong to the layout. Nor are they recognized in a text: `<s>` in a
    caption is three characters.

    Raises:
        ConfigError: the file is missing or is not a tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            content = read_regular(path, at_most=MOST_BYTES)
        except DataError as error:
            raise _unusable(path, f"cannot read the text tokenizer: {error.got or error.what}") from error
        parsed = _parsed(content)
        if parsed is None:  # without the library's message, which quotes the file, and that may be anybody's
            raise _unusable(path, "not a tokenizer")
        self._path = path
        with _failures_of_library(path, "not a tokenizer"):
            self._tokenizer = Tokenizer.from_buffer(content)
            self.growth = text_growth.growth_of(parsed, self._tokenizer.get_vocab())
        model = parsed["model"]
        self._tokenizer.no_truncation()  # never cut, pad, or split a caption at random
        self._tokenizer.no_padding()
        if model.get("dropout"):
            self._tokenizer.model.dropout = None
        unknown = model.get("unk_token")
        unknown_id = model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)
        self._unknown: int | None = unknown_id
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def check(self, layout: TokenLayout) -> None:
        """Check that the vocabulary is the layout's.

        Its ids must be below `n_text`, digits must have the layout's ids, markers the names they are known by, if any,
        and no text that spells a marker may become one.

        Raises:
            ConfigError: for the first id that is wrong.
        """
        vocabulary = self._tokenizer.get_vocab().items()
        if beyond := [(token_id, token) for token, token_id in vocabulary if token_id >= layout.n_text]:
            token_id, token = min(beyond)
            more = "; an added word takes the place of a reserved one, for the ids after the texts' are codes"
            raise self._wrong(layout, f"id of {token!r}", token_id, f"below {layout.n_text}", more=more)
        if layout.digit_offset is not None:
            # After a letter, because some vocabularies put a space before the first word.
            got = self.encode(f"x{DIGITS}")[-len(DIGITS) :]
            expected = list(range(layout.digit_offset, layout.digit_offset + len(DIGITS)))
            if got != expected:
                raise self._wrong(layout, f"ids of {DIGITS}", got, expected)
        for field, name in MARKER_NAMES.get(layout.name, {}).items():
            marker: int = getattr(layout, field)
            named = self._tokenizer.token_to_id(name)
            if named != marker:
                raise self._wrong(layout, f"id of {name!r}", "none" if named is None else named, marker)
        for marker in sorted(layout.markers):
            spelled = self._tokenizer.decode([marker], skip_special_tokens=False)
            if marker in self.encode(spelled):
                raise self._wrong(layout, f"id {marker}", f"{spelled!r} in a text", "a special token, out of reach")

    def _wrong(self, layout: TokenLayout, what: str, got: object, expected: object, *, more: str = "") -> ConfigError:
        return ConfigError(
            f"not the text vocabulary of layout {layout.name}",
            file=self._path,
            where=f"data.text_tokenizer: {what}",
            got=got,
            expected=expected,
            fix=f"give {PUBLISHED.get(layout.name, 'the tokenizer.json made for it')}{more}",
        )

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text).ids)

    def _encode(self, text: str) -> Encoding:
        _utf8(text)
        self._tokenizer.encode_special_tokens = True  # set each time, because a worker's copy forgets it
        with _failures_of_library(self._path, "a tokenizer that fails at a text"):
            return self._tokenizer.encode(text, add_special_tokens=False)

    def unreadable(self, text: str) -> str | None:
        """See `unreadable_word`."""
        encoding = self._encode(text)
        read = bytearray(len(text))
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != self._unknown:
                read[start:end] = bytes([1]) * (end - start)
        for word in re.finditer(r"\S+", text):
            if 0 in read[word.start() : word.end()] or not self._keeps(word[0]):
                return word[0]
        return None

    def _keeps(self, word: str) -> bool:
        """Whether splitting loses nothing of a word but upper case: no accent, no invisible character."""
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return True
        kept = normalizer.normalize_str(word).replace(_BLANK, " ").strip()
        return _folded(kept) == _folded(word.replace(_BLANK, " ").strip())


def growth_of(tokenizer: TextTokenizer) -> Growth:
    """How many ids a text may have; one per byte with a tokenizer that does not say."""
    return tokenizer.growth if isinstance(tokenizer, HuggingFaceTokenizer) else Growth()


def unreadable_word(tokenizer: TextTokenizer, text: str) -> str | None:
    """The first word of a text with characters that the vocabulary lacks, so that other words get the same ids.

    None: there is none; then texts that differ in more than upper case and blanks differ in their ids. A tokenizer of
    another class is assumed to read everything.
    """
    return tokenizer.unreadable(text) if isinstance(tokenizer, HuggingFaceTokenizer) else None


def check_readable(tokenizer: TextTokenizer, text: str) -> None:
    """Raise DataError, naming the word, unless the tokenizer reads all of a caption: see `unreadable_word`."""
    word = unreadable_word(tokenizer, text)
    if word is not None:
        shown = ascii(word) if not word.isprintable() else repr(word)
        raise DataError(
            "a word that the text tokenizer cannot read",
            where="text_tokenizer",
            got=f"{shown[:60]}, {len(word)} characters",
            expected="characters of its vocabulary: other words would give the same clip",
            fix="write it otherwise, or use a model with another vocabulary",
        )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.lower())


def _parsed(content: bytes) -> dict[str, Any] | None:
    """The content of a tokenizer.json; None if it is not one. Its `model` says how words are split."""
    try:
        parsed = json.loads(content)
        return parsed if isinstance(parsed["model"], dict) else None
    except (ValueError, RecursionError, TypeError, LookupError):
        return None


@contextmanager
def _failures_of_library(path: str | Path, what: str) -> Iterator[None]:
    """Raise ConfigError for what the `tokenizers` library raises: bare Exceptions, and panics, which are none."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unusable(path, f"{what}: {error}") from error


def _unusable(path: str | Path, what: str) -> ConfigError:
    fix = "give the path of a tokenizer.json of the `tokenizers` library"
    return ConfigError(what, file=path, where="data.text_tokenizer", fix=fix)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "text is not valid Unicode",
            where=f"character {error.start}",
            got=ascii(text[error.start]),
            expected="no lone surrogates",
        ) from error
