"""A tokenizer, visual or of texts, from the word or path that names it."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.tokenizers import cosmos, text
from lumos_pl.tokenizers.cosmos import FIX, CosmosTokenizer
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.text import BYTES, ByteTokenizer, HuggingFaceTokenizer, TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

EMBEDDED = "embedded"  # the small tokenizers that come with the project


def load_visual_tokenizer(source: str, *, device: str = "cpu") -> VisualTokenizer:
    """The tokenizer that `source` names.

    Args:
        source: `embedded`; a safetensors file of our own (`make train EXP=tokenizer_fsq` writes
            them); or a folder with Cosmos's encoder.jit and decoder.jit.
    Raises:
        ConfigError, CheckpointError: there is none, or it is not what it should be.
    """
    if source == EMBEDDED:
        return _embedded(device)
    path = Path(source)
    if path.is_dir():
        return CosmosTokenizer.load(path, device=device)
    if not path.is_file():
        expected = f"`{EMBEDDED}`, a .safetensors file, or a folder with Cosmos's encoder.jit and decoder.jit"
        raise ConfigError("no such visual tokenizer", file=source, expected=expected, fix=f"Cosmos's: {FIX}")
    return FsqTokenizer.load(path, device=device)


def load_text_tokenizer(source: str | None, layout: TokenLayout) -> TextTokenizer | None:
    """The tokenizer that `source` names, for texts of a layout.

    Args:
        source: `embedded`: words of the demo's captions, and letters for others; a `tokenizer.json`; or None:
            bytes, where these are the layout's text vocabulary.
    Returns:
        None where None is given and the text vocabulary is another.
    Raises:
        ConfigError: it cannot be read, or has another vocabulary.
    """
    if source is None:
        return ByteTokenizer() if layout.n_text == BYTES else None
    if source == EMBEDDED:
        with as_file(files("lumos_pl.tokenizers") / "embedded.json") as path:
            tokenizer = HuggingFaceTokenizer(path)
    else:
        tokenizer = HuggingFaceTokenizer(source)
    tokenizer.check(layout)
    return tokenizer


def need_visual_tokenizer(tokenizer: VisualTokenizer | None) -> VisualTokenizer:
    """It, or ConfigError where there is none."""
    if tokenizer is not None:
        return tokenizer
    fix = f"give the one it was trained with; of a release, the folder with the files of {cosmos.PUBLISHED}"
    raise ConfigError("no visual tokenizer", where="visual_tokenizer", fix=fix)


def need_text_tokenizer(tokenizer: TextTokenizer | None, layout: TokenLayout) -> TextTokenizer:
    """It, or ConfigError where there is none for texts of this layout."""
    if tokenizer is not None:
        return tokenizer
    published = text.PUBLISHED.get(layout.name, "the one it was trained with")
    raise ConfigError("no text tokenizer", where="text_tokenizer", fix=f"give a tokenizer.json: {published}")


@cache
def _embedded(device: str) -> FsqTokenizer:
    with as_file(files("lumos_pl.tokenizers") / "embedded.safetensors") as path:
        return FsqTokenizer.load(path, device=device)
