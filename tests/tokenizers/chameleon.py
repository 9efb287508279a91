"""The vocabulary that the release speaks, but for its words."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel


def chameleon(
    file: Path,
    *,
    changes: dict[str, str] | None = None,
    merges: list[tuple[str, str]] | None = None,
    plain: tuple[str, ...] = (),
    more: tuple[str, ...] = (),
) -> Path:
    """A tokenizer.json with Chameleon's ids for markers, reserved tokens and bytes, and no words.

    Args:
        changes: tokens to put in the place of others.
        merges: pairs that become one token.
        plain: names that are added tokens, but not special ones.
        more: tokens to add at the end.
    """
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"IMGIMG{n}Z" for n in range(8192)), "<eoss>", "<racm3:break>"]
    tokens += [f"<reserved{n:05d}>" for n in range(8194, 16_380)]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens += [chr(byte) for byte in printable]
    tokens += [chr(256 + n) for n in range(256 - len(printable))]  # the other bytes, as in GPT-2
    tokens += [f"word {n}" for n in range(65_536 - len(tokens))]
    tokens = [(changes or {}).get(token, token) for token in tokens]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    assert len(vocabulary) == 65_536

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges or []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in tokens if token.startswith("<") and len(token) > 1])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in plain])
    tokenizer.add_tokens(list(more))
    tokenizer.save(str(file))
    return file
