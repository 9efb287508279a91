from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.description import check_tensors, decoder_tensors
from lumos_pl.checkpoints.huggingface import map_weights, read_layout, read_shape, released_config
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import LayoutConfig, TokenLayout
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.mm_rope import ROPE_KINDS
from lumos_pl.models.transformer import LumosTransformer
from tests.refusals import refused


def test_a_released_folder_becomes_the_same_decoder(
    released: Path, make_decoder: Callable[..., LumosTransformer], layout: TokenLayout
) -> None:
    net = make_decoder(seed=2)
    assert read_shape(released, layout) == net.config
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
    assert getattr(read_shape(released, layout), field) == value


def test_several_files_with_an_index(released: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    weights = dict(make_decoder(seed=1).named_parameters())
    (released / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name].detach() for name in weights if files[name] == file}, released / file)
    (released / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    net = load_decoder(released).net
    assert all(torch.equal(parameter, weights[name]) for name, parameter in net.named_parameters())


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"vocab_size": 77}, {"where": "vocab_size", "got": "77"}),
        ({"hidden_size": None}, {"where": "hidden_size", "got": "None"}),
        ({"hidden_size": 10**30}, {"where": "hidden_size", "got": "1000000000000000000000000000000"}),
        ({"hidden_size": 64.0}, {"where": "hidden_size", "got": "64.0"}),
        ({"hidden_size": True}, {"where": "hidden_size", "got": "True"}),
        ({"num_hidden_layers": 10**9}, {"where": "num_hidden_layers", "expected": "a whole number from 1 to 1024"}),
        ({"num_attention_heads": "2"}, {"where": "num_attention_heads", "got": "'2'"}),
        ({"num_attention_heads": 0}, {"where": "num_attention_heads", "got": "0"}),
        ({"num_key_value_heads": 3}, {"where": "model.n_heads"}),
        ({"rope_theta": math.nan}, {"where": "rope_theta", "got": "nan"}),
        ({"rms_norm_eps": math.inf}, {"where": "rms_norm_eps", "got": "inf"}),
        ({"mm_rope": "yes"}, {"where": "mm_rope", "got": "'yes'"}),
        ({"lumos": {"layout": {}, "rope": "4d"}}, {"where": "mm_rope", "got": "'4d'"}),
        ({"rope_scaling": {"rope_type": "llama3"}}, {"where": "rope_scaling.rope_type"}),
        ({"rope_scaling": ["linear"]}, {"where": "rope_scaling"}),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, {"where": "rope_parameters.rope_type"}),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 8.0}}, {"where": "rope_parameters.factor"}),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, {"where": "rope_parameters.rope_theta"}),
        ({"swin_norm": True}, {"where": "swin_norm"}),
        ({"hidden_act": "gelu"}, {"where": "hidden_act"}),
    ],
)
def test_a_config_that_does_not_fit(
    change: dict[str, Any], fields: dict[str, str], released: Path, layout: TokenLayout
) -> None:
    file = released / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with refused(CheckpointError, file="config.json", **fields):
        read_shape(released, layout)


def test_fields_that_older_files_lack(released: Path, layout: TokenLayout) -> None:
    file = released / "config.json"
    content = json.loads(file.read_text())
    before = read_shape(released, layout)
    for key in "model_parallel_size", "head_dim", "mm_rope", "torch_dtype", "hidden_act":
        content.pop(key, None)
    file.write_text(json.dumps(content))
    assert read_shape(released, layout) == before


def test_a_config_as_newer_transformers_write_it(released: Path, layout: TokenLayout) -> None:
    """Of transformers 5.24: no `rope_theta`, no `torch_dtype`, and the image tokenizer's settings besides."""
    file = released / "config.json"
    content, before = json.loads(file.read_text()), read_shape(released, layout)
    theta = {"rope_theta": content.pop("rope_theta"), "rope_type": "default"}
    for key in "torch_dtype", "rope_scaling":
        content.pop(key, None)
    more = {"dtype": "bfloat16", "image_token_id": 5, "pad_token_id": None, "vq_config": {"embed_dim": 256}}
    file.write_text(json.dumps(content | more | {"rope_parameters": theta, "transformers_version": "5.24.0"}))
    assert read_shape(released, layout) == before
    content["rope_theta"] = 77.0  # alone under its old name, beside a plain rotation
    file.write_text(json.dumps(content | {"rope_scaling": {"type": "default"}}))
    assert read_shape(released, layout).rope_theta == 77.0


def test_what_is_beside_the_decoder_is_left_out_and_named(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_decoder(released)
    beside = {"model.vqmodel.encoder.conv_in.weight": torch.zeros(4), "model.vqmodel.quantize.weight": torch.zeros(4)}
    file = released / "model.safetensors"
    save_file(load_file(file) | beside | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, file)
    caplog.clear()
    net = load_decoder(released).net
    assert all(map(torch.equal, net.parameters(), before.net.parameters()))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "Chameleon's image tokenizer" in said[0] and "2 tensors" in said[0]
    assert "rotary_emb.inv_freq" in said[1] and str(released) in said[1]
    save_file(load_file(file) | {"vqmodel.x": torch.ones(2)}, file)  # of another name it is not known
    with refused(CheckpointError, file="released", where="vqmodel.x"):
        load_decoder(released)


@pytest.mark.parametrize("rope", ROPE_KINDS)
@pytest.mark.parametrize("head_dim", [None, 96])
def test_config_json_says_all_of_a_decoder(rope: str, head_dim: int | None, tmp_path: Path) -> None:
    layout = LayoutConfig()
    config = ModelConfig(size="1b", rope=rope, head_dim=head_dim, rope_theta=5e5, max_length=99).build(layout.build())
    content = released_config(layout, config, torch.bfloat16, {})
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_layout(tmp_path) == layout
    assert read_shape(tmp_path, layout.build()) == config
    assert content["mm_rope"] == (rope == "mm")
    assert ("lumos" in content) == (rope not in ("mm", "1d"))  # only where the release has no word for it
    assert ("head_dim" in content) == (head_dim is not None)


def test_without_a_word_the_layout_is_the_releases(tmp_path: Path) -> None:
    for vocab_size, codebook_size in (129_536, 64_000), (66_536, 1000):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
        assert read_layout(tmp_path) == LayoutConfig(codebook_size=codebook_size)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 77},
        {"vocab_size": "many"},
        {"vocab_size": None},
        {"vocab_size": 10**6},
        {"lumos": []},
        {"lumos": {"layout": None}},
        {"lumos": {"layout": {"preset": "compact", "codebook_size": 60, "strides": [4, 8]}}},
        {"lumos": {"layout": {"preset": "other", "codebook_size": 60, "strides": [4, 8, 8]}}},
        {"lumos": {"layout": {"preset": "lumos1", "codebook_size": 60, "strides": [4, 4, 4]}}},
        {"lumos": {"layout": {"preset": "compact", "codebook_size": 60, "strides": [4, 8, 8], "bos": 7}}},
    ],
)
def test_a_layout_that_cannot_be(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 129_536} | change))
    with refused(CheckpointError, file="config.json"):
        read_layout(tmp_path)


def test_names_and_shapes_are_checked(released: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    with refused(CheckpointError, file="released", where="model.layers.2.input_layernorm.weight"):
        check_tensors(decoder_tensors(make_decoder(n_layers=3).config), map_weights(released), released)
    with refused(CheckpointError, file="released", where="model.layers.1.input_layernorm.weight"):
        check_tensors(decoder_tensors(make_decoder(n_layers=1).config), map_weights(released), released)
    with refused(CheckpointError, file="released", where="model.layers.0.mlp.gate_proj.weight"):
        check_tensors(decoder_tensors(make_decoder(ffn_dim=96).config), map_weights(released), released)


def test_two_sets_of_weights_are_refused(released: Path) -> None:
    """An index, and beside it a file that it does not name: transformers would read that one, and not the index."""
    weights = load_file(released / "model.safetensors")
    save_file(weights, released / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(CheckpointError, file=released):
        map_weights(released)
    (released / "model.safetensors").unlink()
    assert map_weights(released).keys() == weights.keys()


def test_a_tensor_in_two_files_is_refused(released: Path) -> None:
    shutil.copy(released / "model.safetensors", released / "again.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "again.safetensors"}}
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(CheckpointError, file="model.safetensors", where="lm_head.weight"):
        map_weights(released)


def test_weights_that_are_no_floating_point_numbers_are_refused(
    released: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    weights = map_weights(released)
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(weights, released / "other.safetensors")
    (released / "other.safetensors").replace(released / "model.safetensors")
    with refused(CheckpointError, file="released", where="model.norm.weight"):
        check_tensors(decoder_tensors(make_decoder().config), map_weights(released), released)


@pytest.mark.parametrize(
    ("index", "fields"),
    [
        (
            {"weight_map": {"x": "../model.safetensors"}},
            {"file": "model.safetensors.index.json", "got": "'../model.safetensors'"},
        ),
        ({"weight_map": {"x": ".."}}, {"file": "model.safetensors.index.json", "got": "'..'"}),
        (
            {"weight_map": {"x": "/etc/model.safetensors"}},
            {"file": "model.safetensors.index.json", "got": "'/etc/model.safetensors'"},
        ),
        (
            {"weight_map": {"x": "a\0.safetensors"}},
            {"file": "model.safetensors.index.json", "got": "'a\\x00.safetensors'"},
        ),
        ({"weight_map": {"x": 1}}, {"file": "model.safetensors.index.json", "got": "1"}),
        ({"weight_map": {}}, {"file": "model.safetensors.index.json", "where": "weight_map"}),
        ({"weight_map": {"x": "gone.safetensors"}}, {"file": "gone.safetensors"}),
        ({}, {"file": "model.safetensors.index.json", "where": "weight_map"}),
        ([], {"file": "model.safetensors.index.json", "got": "list"}),
    ],
)
def test_a_bad_index_is_refused(
    index: object, fields: dict[str, str], released: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    (released / "model.safetensors").unlink()
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(CheckpointError, **fields):
        check_tensors(decoder_tensors(make_decoder().config), map_weights(released), released)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(length: int, released: Path) -> None:
    file = released / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with refused(CheckpointError, file="model.safetensors"):
        map_weights(released)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}", b"[1]"]
)
def test_a_damaged_config_is_one_line(content: bytes, released: Path, layout: TokenLayout) -> None:
    (released / "config.json").write_bytes(content)
    with refused(CheckpointError, file="config.json") as caught:
        read_shape(released, layout)
    assert len(str(caught.value)) < 1000
