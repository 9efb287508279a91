from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.tokenizers.text import RELEASE_PROMPT, ByteTokenizer, HuggingFaceTokenizer, PromptTemplate

NUMBERS = {"width": 448, "height": 256, "frames": 24, "fps": 12}


def test_the_release_wording() -> None:
    assert PromptTemplate(RELEASE_PROMPT).render(**NUMBERS, caption="a cat") == (
        "Generate a video with a resolution of 448x256, consisting of 24 frames at 12 frames per second, "
        "according to the following prompt:\n a cat"
    )


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
    with pytest.raises(ConfigError, match=r"data\.prompt"):
        PromptTemplate(template)


def test_bytes_around_the_caption() -> None:
    assert PromptTemplate("{width} é {caption}").max_bytes == 9
    template = PromptTemplate(RELEASE_PROMPT)
    assert len(template.render(**NUMBERS, caption="")) <= template.max_bytes


def test_bytes() -> None:
    assert ByteTokenizer().encode("aé") == [97, 0xC3, 0xA9]
    with pytest.raises(DataError, match=r"not valid Unicode \| character 1"):
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
    with pytest.raises(DataError, match="not valid Unicode"):
        tokenizer.encode("\ud800")

    same = HuggingFaceTokenizer(tokenizer_file).fingerprint
    tokenizer_file.write_text(tokenizer_file.read_text().replace('"cat"', '"dog"'))
    assert same == tokenizer.fingerprint != HuggingFaceTokenizer(tokenizer_file).fingerprint


def test_a_missing_or_broken_file_is_named(tokenizer_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*absent\.json \| data\.text_tokenizer"):
        HuggingFaceTokenizer(tokenizer_file.with_name("absent.json"))
    tokenizer_file.write_text("{}")
    with pytest.raises(ConfigError, match=r"not a tokenizer.*tokenizer\.json") as caught:
        HuggingFaceTokenizer(tokenizer_file)
    assert "\n" not in str(caught.value)
    tokenizer_file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        HuggingFaceTokenizer(tokenizer_file)
