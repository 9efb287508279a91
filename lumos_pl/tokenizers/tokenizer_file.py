"""Builds a tokenizer of the project from its settings, or from the file that it was saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from lumos_pl.errors import CheckpointError, DataError
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.tokenizers.dictionary import DictionaryTokenizer
from lumos_pl.tokenizers.fsq import FsqTokenizer, Quantizer
from lumos_pl.tokenizers.trained import FORMATS, TokenizerConfig, TrainedTokenizer


def build_tokenizer(config: TokenizerConfig) -> TrainedTokenizer:
    """A new tokenizer of this shape, with its initial weights."""
    return FsqTokenizer(config) if config.kind == "fsq" else DictionaryTokenizer(config)


def read_tokenizer(path: Path, *, device: str = "cpu") -> TrainedTokenizer:
    """Read a file that `TrainedTokenizer.save` wrote.

    Raises:
        CheckpointError: it is not such a file, or a weight is missing or of another shape.
    """
    try:
        content = read_regular(path)
        weights = load(content)
        described = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], dict[str, dict[str, Any]])
        header = described.get("__metadata__", {})
    except DataError as error:
        got = error.got or error.what
        raise CheckpointError("cannot read the visual tokenizer", file=path, got=got) from None
    except SafetensorError as error:
        raise CheckpointError("cannot read the visual tokenizer", file=path, got=str(error)) from None
    if header.get("format") not in FORMATS.values():
        expected = " or ".join(FORMATS.values())
        what = "not a visual tokenizer of this project"
        raise CheckpointError(what, file=path, got=header.get("format"), expected=expected)
    try:
        config = parse_json(header["config"].encode(), TokenizerConfig)
        if header["format"] != FORMATS[config.kind]:
            raise ValueError(f"a {header['format']} of the kind {config.kind}")
        with torch.device("meta"):  # whatever the header claims, memory is only used for what the file holds
            tokenizer = build_tokenizer(config)
        single = {name: weight.float() for name, weight in weights.items()}  # 64-bit values may overflow
        for name, weight in weights.items():
            if not (weight.is_floating_point() and single[name].isfinite().all()):
                raise ValueError(f"{name}: not finite numbers, {weight.dtype}")
        tokenizer.load_state_dict(single, assign=True)
        if isinstance(tokenizer, FsqTokenizer):
            tokenizer.quantizer = Quantizer(config.levels)  # it has no weights
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError("damaged visual tokenizer", file=path, got=" ".join(str(error).split())) from None
    return tokenizer.eval().requires_grad_(False).to(device)
