from __future__ import annotations

import base64
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from data_modules.config import DataConfig
from data_modules.token_data import TokenDataModule
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import compact_layout, lumos1_layout
from lumos_pl.tokenizers.load import load_text_tokenizer
from lumos_pl.tokenizers.text import (
    RELEASE_PROMPT,
    ByteTokenizer,
    HuggingFaceTokenizer,
    PromptTemplate,
    check_readable,
    unreadable_word,
)
from tests.refusals import refused
from tests.tokenizers.chameleon import chameleon

NUMBERS = {"width": 448, "height": 256, "frames": 24, "fps": 12}


def test_the_release_wording() -> None:
    assert PromptTemplate(RELEASE_PROMPT).render(**NUMBERS, caption="a cat") == (
        "Generate a video with a resolution of 448x256, consisting of 24 frames at 12 frames per second, "
        "according to the following prompt:\n a cat"
    )


def test_a_tokenizer_whose_library_panics_at_a_text_is_refused(tmp_path: Path) -> None:
    """A panic of Rust's is no Exception: nothing would catch it."""
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str())
    table = base64.b64encode(b"\4\0\0\0" + bytes([17]) * 100).decode()  # which leads out of itself
    file.write_text(json.dumps(tokenizer | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}}))
    tokenizer = HuggingFaceTokenizer(file)
    for read in tokenizer.encode, tokenizer.unreadable:
        with refused(ConfigError, file=file, where="data.text_tokenizer"):
            read("a circle")


def test_braces() -> None:
    """Doubled ones in the template are literal; those of a caption mean nothing."""
    template = PromptTemplate("{{{caption}}} {fps}")
    assert template.render(**NUMBERS, caption="{width} {0} {caption.__class__}") == (
        "{{width} {0} {caption.__class__}} 12"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{caption.__class__}",
        "{caption[0]}",
        "{caption!r}",
        "{caption:>9}",
        "{caption:{width}}",
        "{caption} {seed}",
        "{}",
        "{0}",
        "{caption",
        "caption}",
        "no field",
        "{caption} {caption}",
    ],
)
def test_a_template_is_no_format_string(template: str) -> None:
    with refused(ConfigError, where="data.prompt"):
        PromptTemplate(template)


def test_bytes_around_the_caption() -> None:
    assert PromptTemplate("{width} é {caption}").max_bytes == 9
    template = PromptTemplate(RELEASE_PROMPT)
    assert len(template.render(**NUMBERS, caption="")) <= template.max_bytes


def test_bytes() -> None:
    assert ByteTokenizer().encode("aé") == [97, 0xC3, 0xA9]
    with refused(DataError, where="character 1"):
        ByteTokenizer().encode("a\ud800")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "cat": 2, "<s>": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def test_hugging_face(tokenizer_file: Path) -> None:
    tokenizer = HuggingFaceTokenizer(tokenizer_file)
    assert tokenizer.encode("a cat") == [1, 2]  # no <s>: the layout has its own
    with refused(DataError, where="character 0"):
        tokenizer.encode("\ud800")

    same = HuggingFaceTokenizer(tokenizer_file).fingerprint
    tokenizer_file.write_text(tokenizer_file.read_text().replace('"cat"', '"dog"'))
    assert same == tokenizer.fingerprint != HuggingFaceTokenizer(tokenizer_file).fingerprint


def test_a_missing_or_broken_file_is_named(tokenizer_file: Path) -> None:
    with refused(ConfigError, file="absent.json", where="data.text_tokenizer"):
        HuggingFaceTokenizer(tokenizer_file.with_name("absent.json"))
    tokenizer_file.write_text("{}")
    with refused(ConfigError, file="tokenizer.json", where="data.text_tokenizer") as caught:
        HuggingFaceTokenizer(tokenizer_file)
    assert "\n" not in str(caught.value)
    tokenizer_file.write_bytes(b"\xff\xfe")
    with refused(ConfigError, file="tokenizer.json", where="data.text_tokenizer"):
        HuggingFaceTokenizer(tokenizer_file)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a red circle, 12 px: BIG!", None),
        ("a  red\u00a0circle\n", None),  # blanks and upper case alone
        ("a cat", None),  # spelled
        ("a [UNK]", None),
        (f"a {'x' * 101}", "x" * 101),
        ("a красный circle", "красный"),
        ("a café", "café"),
        ("a cafe\u0301", "cafe\u0301"),
        ("a re\u200bd circle", "re\u200bd"),
        ("a \u200b circle", "\u200b"),
        ("a \u0301 circle", "\u0301"),
        ("a re\0d circle", "re\0d"),
        ("a 🦊", "🦊"),
    ],
)
def test_a_word_that_others_share_their_ids_with_is_told(text: str, word: str | None) -> None:
    tokenizer = load_text_tokenizer("embedded", compact_layout(1000))
    assert tokenizer is not None and unreadable_word(tokenizer, text) == word
    if word is not None:
        with refused(DataError, where="text_tokenizer"):
            check_readable(tokenizer, text)
    assert unreadable_word(ByteTokenizer(), text) is None


def test_characters_that_a_vocabulary_drops_are_told(tmp_path: Path) -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))  # without a token for the unknown
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    dropping = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    assert dropping.encode("acb") == [0, 1] and unreadable_word(dropping, "ab acb") == "acb"


def test_bytes_that_stand_for_characters_lose_none(chameleon_file: Path) -> None:
    tokenizer = HuggingFaceTokenizer(chameleon_file)
    assert unreadable_word(tokenizer, "café 🦊 re\u200bd e\u0301 <s>") is None


def test_captions_are_neither_cut_nor_filled_up_nor_split_at_random(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tokenizer_file))
    for copy in (read := HuggingFaceTokenizer(tokenizer_file)), pickle.loads(pickle.dumps(read)):
        assert copy.encode("a cat a cat") == [1, 2, 1, 2]
    bpe = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.9))
    bpe.save(str(tokenizer_file))
    assert {tuple(HuggingFaceTokenizer(tokenizer_file).encode("ab")) for _ in range(20)} == {(2,)}


@pytest.mark.parametrize("content", ["hunter2", '{"hunter2": "hunter2"}', '{"model": "hunter2"}', "[" * 10_000])
def test_what_is_no_tokenizer_is_not_quoted(content: str, tmp_path: Path) -> None:
    """A checkpoint may name anybody's file."""
    (tmp_path / "passwd").write_text(content)
    with refused(ConfigError, file="passwd") as caught:
        HuggingFaceTokenizer(tmp_path / "passwd")
    assert "hunter2" not in str(caught.value)


# -- the vocabulary of layout lumos1 -----------------------------------------------------------


@pytest.fixture(scope="module")
def chameleon_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chameleon(tmp_path_factory.mktemp("chameleon") / "tokenizer.json")


def test_the_vocabulary_of_lumos1(chameleon_file: Path) -> None:
    tokenizer = HuggingFaceTokenizer(chameleon_file)
    tokenizer.check(lumos1_layout())
    # A piece of a text that the release tokenized.
    assert tokenizer.encode(" 672x384,") == [16604, 16405, 16406, 16401, 16471, 16402, 16407, 16403, 16395]


@pytest.mark.parametrize("name", ["<s>", "<pad>", "<eoss>", "<racm3:break>", "<reserved08706>", "<reserved08800>"])
def test_a_caption_that_spells_a_special_token_stays_text(chameleon_file: Path, name: str) -> None:
    """Also in a data worker, which may receive a pickled copy."""
    tokenizer = HuggingFaceTokenizer(chameleon_file)
    tokenizer.check(lumos1_layout())
    for copy in tokenizer, pickle.loads(pickle.dumps(tokenizer)):
        ids = copy.encode(f"a {name}.")
        assert len(ids) == len(name) + 3
        assert min(ids) >= 16_384


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (
            {"more": ("<image placeholder>",)},
            {"where": "data.text_tokenizer: id of '<image placeholder>'", "got": "65536", "expected": "below 65536"},
        ),
        (
            {"changes": {"1": "2", "2": "1"}},
            {"where": "data.text_tokenizer: ids of 0123456789"},
        ),
        ({"changes": {"word 0": "12"}, "merges": [("1", "2")]}, {"where": "data.text_tokenizer: ids of 0123456789"}),
        (
            {"changes": {"<reserved08706>": "<sep>"}},
            {"where": "data.text_tokenizer: id of '<reserved08706>'", "got": "none", "expected": "8710"},
        ),
        (
            {"changes": {"<s>": "<pad>", "<pad>": "<s>"}},
            {"where": "data.text_tokenizer: id of '<s>'", "got": "1", "expected": "0"},
        ),
        ({"plain": ("<eoss>",)}, {"where": "data.text_tokenizer: id 8196", "got": "'<eoss>' in a text"}),
    ],
)
def test_another_vocabulary_is_refused(
    tmp_path: Path, changes: dict[str, dict[str, str] | list[tuple[str, str]] | tuple[str, ...]], fields: dict[str, str]
) -> None:
    file = chameleon(tmp_path / "tokenizer.json", **changes)  # type: ignore[arg-type]
    with refused(ConfigError, file="tokenizer.json", **fields) as caught:
        HuggingFaceTokenizer(file).check(lumos1_layout())
    assert "facebook/chameleon-7b" in str(caught.value.fix)


def test_an_added_word_takes_the_place_of_a_reserved_one(tmp_path: Path) -> None:
    file = chameleon(tmp_path / "tokenizer.json", changes={"<reserved10000>": "zorple"}, plain=("zorple",))
    tokenizer = HuggingFaceTokenizer(file)
    tokenizer.check(lumos1_layout())
    (place,) = tokenizer.encode("zorple")
    assert tokenizer.encode("a zorple.")[2:-1] == [place] and place < 16_384
    lumos1_layout().check_words([place])


def test_a_layout_without_names(chameleon_file: Path, tokenizer_file: Path) -> None:
    with refused(
        ConfigError,
        file="tokenizer.json",
        where="data.text_tokenizer: id of 'IMGIMG252Z'",
        got="256",
        expected="below 256",
    ):
        HuggingFaceTokenizer(chameleon_file).check(compact_layout())
    with refused(ConfigError, file="tokenizer.json", where="data.text_tokenizer: ids of 0123456789"):
        HuggingFaceTokenizer(tokenizer_file).check(compact_layout())


def test_a_marker_that_is_also_a_word(tmp_path: Path) -> None:
    """Being special does not keep it out of a text where words are looked up whole."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "<s>": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    layout = replace(compact_layout(), bos=2, digit_offset=None)
    with refused(ConfigError, file="tokenizer.json", where="data.text_tokenizer: id 2", got="'<s>' in a text"):
        HuggingFaceTokenizer(file).check(layout)
    HuggingFaceTokenizer(file).check(replace(layout, bos=256))


def test_the_vocabulary_is_checked_before_any_data_is_read(tmp_path: Path, tokenizer_file: Path) -> None:
    config = DataConfig(root=str(tmp_path / "no shards here"), text_tokenizer=str(tokenizer_file))
    with refused(ConfigError, file="tokenizer.json", where="data.text_tokenizer: ids of 0123456789"):
        TokenDataModule(config, lumos1_layout(), seed=0).setup()
