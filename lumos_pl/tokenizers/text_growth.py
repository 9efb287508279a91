"""How many ids a text may have at the most, by what a tokenizer.json does to it before it is split.

A model of the `tokenizers` library has at most an id for each byte that it is given. What comes before it may make a
text longer: Unicode's forms, replacements, a mark for a blank.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_NORMALIZERS = {  # bytes of UTF-8 that one byte becomes at the most
    **{"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11},  # https://unicode.org/faq/normalization.html
    **{"Lowercase": 1.5, "Strip": 1, "StripAccents": 1, "Nmt": 1},  # U+023A, of two bytes, has a small one of three
    **{"ByteLevel": 2, "BertNormalizer": 4.5},  # NFD, then small letters
}
_SPLITTING = (
    *("BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Punctuation", "Split"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
)


@dataclass(frozen=True)
class Growth:
    """A text of n bytes has at most `per_byte` * n + `extra` ids; infinitely many where nothing is known."""

    per_byte: float = 1
    extra: float = 0

    def then(self, later: Growth) -> Growth:
        return Growth(self.per_byte * later.per_byte, self.extra * later.per_byte + later.extra)


def growth_of(tokenizer: dict[str, Any], vocabulary: Container[str]) -> Growth:
    """That of the content of a tokenizer.json, which the library has read."""
    growth = Growth()
    for step in [*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer"))]:
        growth = growth.then(_of(step, vocabulary))
    if growth.extra and any(not token.get("special") for token in tokenizer.get("added_tokens") or ()):
        growth = Growth(growth.per_byte + growth.extra, growth.extra)  # such tokens divide a text into several
    return growth


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """In their order."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for one in step.get("normalizers") or step.get("pretokenizers") or () for inner in _steps(one)]
    return [step]


def _of(step: dict[str, Any], vocabulary: Container[str]) -> Growth:
    def ids(text: str) -> int:
        return sum(1 if character in vocabulary else len(character.encode()) for character in text)

    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return Growth(max(1, ids(content) / len(pattern.encode())))
        case {"type": "Replace", "content": str(content)}:  # of a pattern that may be empty
            return Growth(1 + ids(content))
        case {"type": "Prepend", "prepend": str(text)}:
            return Growth(extra=ids(text))
        case {"type": "Precompiled", "precompiled_charsmap": str(rules)}:
            return Growth(_longest_replacement(rules))
        case {"type": "Metaspace"}:
            mark = ids(step.get("replacement") or "")
            return Growth(max(1, mark), mark)
        case {"type": "ByteLevel", "add_prefix_space": bool(adds)}:  # the pre-tokenizer: a character a byte
            return Growth(extra=int(adds))
        case {"type": str(kind)} if kind in _NORMALIZERS:
            return Growth(_NORMALIZERS[kind])
        case {"type": str(kind)} if kind in _SPLITTING:
            return Growth()
    return Growth(math.inf)


def _longest_replacement(rules: str) -> float:
    """Bytes of the longest text in SentencePiece's rules: the length of an index, the index, texts that end with 0."""
    data = base64.b64decode(rules)
    return max(1, *map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))
