"""How many ids a text may have at most, given what a tokenizer.json does to it before splitting it.

A model of the `tokenizers` library makes at most one id of each byte that it gets. Steps before it may lengthen the
text: Unicode normalization, replacements, a mark for a blank.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

_NORMALIZERS = {  # UTF-8 bytes that one byte may become
    **{"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11},  # https://unicode.org/faq/normalization.html
    **{"Lowercase": 1.5, "Strip": 1, "StripAccents": 1, "Nmt": 1},  # U+023A, two bytes, has a lower case of three
    **{"ByteLevel": 2, "BertNormalizer": 4.5},  # NFD, then lower case
}
_SPLITTING = (
    *("BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Punctuation", "Split"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
)


@dataclass(frozen=True)
class Growth:
    """A text of n bytes has at most `per_byte` * n + `extra` ids; infinitely many if nothing is known."""

    per_byte: float = 1
    extra: float = 0

    def then(self, later: Growth) -> Growth:
        return Growth(self.per_byte * later.per_byte, self.extra * later.per_byte + later.extra)


def growth_of(tokenizer: dict[str, Any], vocabulary: Container[str]) -> Growth:
    """The growth from the content of a tokenizer.json, which the library has read."""
    growth = Growth()
    for step in [*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer"))]:
        growth = growth.then(_of(step, vocabulary))
    if growth.extra and any(not token.get("special") for token in tokenizer.get("added_tokens") or ()):
        growth = Growth(growth.per_byte + growth.extra, growth.extra)  # such tokens split a text into several
    return growth


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a sequence, in order."""
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
        case {"type": "Replace", "content": str(content)}:  # the pattern may match the empty string
            return Growth(1 + ids(content))
        case {"type": "Prepend", "prepend": str(text)}:
            return Growth(extra=ids(text))
        case {"type": "Precompiled", "precompiled_charsmap": str(rules)}:
            return Growth(_longest_replacement(rules))
        case {"type": "Metaspace"}:
            mark = ids(step.get("replacement") or "")
            return Growth(max(1, mark), mark)
        case {"type": "ByteLevel", "add_prefix_space": bool(adds)}:  # the pre-tokenizer: one character per byte
            return Growth(extra=int(adds))
        case {"type": str(kind)} if kind in _NORMALIZERS:
            return Growth(_NORMALIZERS[kind])
        case {"type": str(kind)} if kind in _SPLITTING:
            return Growth()
    return Growth(math.inf)


def _longest_replacement(rules: str) -> float:
    """Bytes of the longest text in SentencePiece's rules: the index's length, the index, zero-terminated texts."""
    data = base64.b64decode(rules)
    return max(1, *map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))
