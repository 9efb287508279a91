from __future__ import annotations

from importlib.resources import files

import pytest

from lumos_pl.layout import compact_layout
from lumos_pl.shape_world.scene import BACKGROUNDS, SIZES, SPEEDS, WorldConfig, draw_scene
from lumos_pl.shape_world.words import UNKNOWN, word_tokenizer
from lumos_pl.tokenizers.load import load_text_tokenizer
from lumos_pl.tokenizers.text import BYTES, ByteTokenizer

RICH = WorldConfig(sizes=list(SIZES), speeds=list(SPEEDS), backgrounds=list(BACKGROUNDS), pairs=0.5)


def test_the_file_that_comes_with_the_project_is_made_here() -> None:
    shipped = (files("lumos_pl.tokenizers") / "embedded.json").read_text()
    assert shipped == word_tokenizer().to_str(pretty=True) + "\n"


def test_every_word_of_a_caption_is_a_token() -> None:
    tokenizer = word_tokenizer()
    for number in range(200):
        caption = draw_scene(RICH, seed=0, split="train", number=number).caption
        assert tokenizer.encode(caption).tokens == caption.replace(",", " ,").split()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A RED circle", ["a", "red", "circle"]),
        ("café", ["c", "##a", "##f", "##e"]),
        ("17 reds", ["1", "7", "red", "##s"]),
        ("東京 [UNK]\n", [UNKNOWN, "[", "u", "##n", "##k", "]"]),
    ],
)
def test_other_words_are_spelled(text: str, tokens: list[str]) -> None:
    assert word_tokenizer().encode(text).tokens == tokens


def test_it_takes_the_place_of_bytes() -> None:
    layout = compact_layout(1000)
    tokenizer, spelled = load_text_tokenizer("embedded", layout), load_text_tokenizer(None, layout)
    assert tokenizer is not None
    assert isinstance(spelled, ByteTokenizer)
    text = "a small red square, 12 px"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text)
    assert max(ids) < BYTES
    assert tokenizer.encode("12;") == list(b"12;") == spelled.encode("12;")
