"""The released checkpoints: safetensors files and config.json in the Hugging Face layout.

    DIR/config.json
    DIR/model.safetensors                              one file, or
    DIR/model.safetensors.index.json + the shards      several

Parameter names are our own, so reading is checking and copying.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lumos_pl.errors import CheckpointError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import copy_weight

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_config(folder: Path, layout: TokenLayout | TransformerConfig) -> TransformerConfig:
    """The shape of a released checkpoint; `layout`, or a decoder over it, gives what config.json does not say."""
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError("no config.json", file=folder, fix="give the folder of a released checkpoint") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError("config.json is not JSON", file=file, where=str(error)) from None

    def number(key: str) -> Any:
        value = config.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise CheckpointError("config.json lacks a number", file=file, where=key, got=value, expected="above 0")
        return value

    if number("vocab_size") != layout.vocab_size:
        raise CheckpointError(
            "another vocabulary", file=file, where="vocab_size", got=config["vocab_size"], expected=layout.vocab_size
        )
    dim, n_heads = number("hidden_size"), number("num_attention_heads")
    return TransformerConfig(
        vocab_size=layout.vocab_size,
        visual_offset=layout.visual_offset,
        dim=dim,
        n_layers=number("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=number("num_key_value_heads"),
        head_dim=config.get("head_dim") or dim // n_heads,
        ffn_dim=number("intermediate_size"),
        qk_norm_rows=number("model_parallel_size"),
        norm_eps=number("rms_norm_eps"),
        rope="mm" if config.get("mm_rope", True) else "1d",
        rope_theta=number("rope_theta"),
        strides=layout.strides,
        max_length=number("max_position_embeddings"),
    )


def iterate_weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) one at a time, so that no more than one file's page is in memory."""
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    yield file, name, tensors.get_tensor(name)
        except (FileNotFoundError, SafetensorError) as error:
            raise CheckpointError("weights cannot be read", file=file, where=str(error)) from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
        raise CheckpointError("the index is damaged", file=index, where="weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError("the index points outside its folder", file=index, got=name)
    return [folder / name for name in sorted(names)]


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a released checkpoint into a model of its shape, tensor by tensor, converting dtypes.

    Raises:
        CheckpointError: a missing, unexpected or twice-given name, or another shape.
    """
    missing = dict(model.named_parameters())
    for file, name, tensor in iterate_weights(folder):
        parameter = missing.pop(name, None)
        if parameter is None:
            raise CheckpointError("unexpected or repeated tensor", file=file, where=name)
        if parameter.shape != tensor.shape:
            raise CheckpointError(
                "tensor of another shape", file=file, where=name, got=list(tensor.shape), expected=list(parameter.shape)
            )
        copy_weight(parameter, tensor)
    if missing:
        raise CheckpointError(f"{len(missing)} tensors missing", file=folder, where=next(iter(missing)))
