from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lumos_pl.checkpoints.huggingface import load_weights, read_config
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "model_parallel_size": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 16_384,
}


@pytest.fixture
def released(tmp_path: Path, make_decoder: Callable[..., LumosTransformer], layout: TokenLayout) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": layout.vocab_size}))
    weights = {name: parameter.detach().bfloat16() for name, parameter in make_decoder(seed=1).named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_a_released_folder_becomes_the_same_decoder(
    released: Path, make_decoder: Callable[..., LumosTransformer], layout: TokenLayout
) -> None:
    net = make_decoder(seed=2)
    assert read_config(released, layout) == net.config
    load_initial_weights(net, source=released)
    for loaded, saved in zip(net.parameters(), make_decoder(seed=1).parameters(), strict=True):
        assert torch.equal(loaded, saved.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"head_dim": 64}, "head_dim", 64),
        ({"mm_rope": False}, "rope", "1d"),
        ({"rope_theta": 5e5}, "rope_theta", 5e5),
        ({"rms_norm_eps": 1e-6}, "norm_eps", 1e-6),
        ({"num_key_value_heads": 2, "model_parallel_size": 2}, "qk_norm_rows", 2),
    ],
)
def test_what_config_json_says_reaches_the_decoder(
    change: dict[str, Any], field: str, value: object, released: Path, layout: TokenLayout
) -> None:
    file = released / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert getattr(read_config(released, layout), field) == value


def test_several_files_with_an_index(released: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    weights = dict(make_decoder(seed=1).named_parameters())
    (released / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name].detach() for name in weights if files[name] == file}, released / file)
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    net = make_decoder(seed=2)
    load_weights(net, released)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in net.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 77}, "another vocabulary .* got 77"),
        ({"hidden_size": None}, "lacks a number .* hidden_size"),
        ({"num_attention_heads": "2"}, "lacks a number .* num_attention_heads"),
    ],
)
def test_a_config_that_does_not_fit(change: dict[str, Any], message: str, released: Path, layout: TokenLayout) -> None:
    file = released / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_config(released, layout)


def test_names_and_shapes_are_checked(released: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    with pytest.raises(CheckpointError, match="tensors missing"):
        load_weights(make_decoder(n_layers=3), released)
    with pytest.raises(CheckpointError, match="unexpected or repeated tensor"):
        load_weights(make_decoder(n_layers=1), released)
    with pytest.raises(CheckpointError, match="another shape"):
        load_weights(make_decoder(ffn_dim=96), released)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "../model.safetensors"}}, "points outside"),
        ({"weight_map": {"x": 1}}, "points outside"),
        ({"weight_map": {"x": "gone.safetensors"}}, r"weights cannot be read .*gone\.safetensors"),
        ({}, "the index is damaged"),
        ([], "the index is damaged"),
    ],
)
def test_a_bad_index_is_refused(
    index: object, message: str, released: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_weights(make_decoder(), released)


def test_damaged_files_are_one_line(
    released: Path, make_decoder: Callable[..., LumosTransformer], layout: TokenLayout
) -> None:
    (released / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_weights(make_decoder(), released)
    (released / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(released, layout)
