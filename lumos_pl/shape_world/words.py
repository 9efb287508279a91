"""The text tokenizer of this world: its words, and letters for all others.

The file that comes with the project was made by

    python -m lumos_pl.shape_world.words lumos_pl/tokenizers/embedded.json

A word is then one token rather than several bytes: a decoder need not learn to spell before it can
tell what a caption asks for.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lumos_pl.shape_world.scene import BACKGROUNDS, COLORS, MOTIONS, RELATIONS, SHAPES, SIZES, SPEEDS
from lumos_pl.tokenizers.text import BYTES

UNKNOWN = "[UNK]"  # a word with letters of other alphabets
CONTINUES = "##"  # before a letter within a word
_SYNTAX = ("a", "an", "the", "on")


def word_tokenizer() -> Tokenizer:
    """WordPiece over a vocabulary no larger than that of bytes, upper case and accents taken off.

    ASCII characters keep their byte as their id.
    """
    spoken = " ".join((*COLORS, *SHAPES, *MOTIONS, *SIZES, *SPEEDS, *RELATIONS, *BACKGROUNDS, *_SYNTAX)).split()
    letters = string.ascii_lowercase
    single = [character for character in map(chr, range(128)) if character.isprintable() and not character.isspace()]
    vocabulary = {character: ord(character) for character in single if not character.isupper()}
    free = sorted(set(range(BYTES)) - set(vocabulary.values()))
    pieces = [UNKNOWN, *(CONTINUES + letter for letter in letters), *sorted(set(spoken) - set(vocabulary))]
    vocabulary |= dict(zip(pieces, free[: len(pieces)], strict=True))

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return tokenizer


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(word_tokenizer().to_str(pretty=True) + "\n")
