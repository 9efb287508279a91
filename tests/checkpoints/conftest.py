"""One decoder (`make_decoder(seed=1)`, averaged weights from seed 5) in each of the forms it may be saved in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

from lumos_pl.checkpoints.complete import checkpoint_name, complete
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.transformer import LumosTransformer

LAYOUT = {"preset": "compact", "codebook_size": 60, "strides": [4, 8, 8]}
MODEL = {
    "vocab_size": 452,
    "visual_offset": 392,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 32,
    "ffn_dim": 128,
    "qk_norm_rows": 1,
    "norm_eps": 1e-5,
    "rope": "mm",
    "rope_theta": 10_000.0,
    "strides": [4, 8, 8],
    "max_length": 16_384,
}
RELEASED = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "model_parallel_size": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 16_384,
    "vocab_size": 452,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "lumos": {"layout": LAYOUT},
}


@pytest.fixture
def state(make_decoder: Callable[..., LumosTransformer]) -> dict[str, Tensor]:
    """What a run saves of its module."""
    return {
        prefix + name: parameter.detach()
        for prefix, seed in (("net.", 1), ("ema.", 5))
        for name, parameter in make_decoder(seed=seed).named_parameters()
    }


@pytest.fixture
def content(state: dict[str, Tensor]) -> dict[str, Any]:
    """A run's checkpoint, as far as its decoder is concerned."""
    identity = {"layout": LAYOUT, "model": MODEL, "seed": 0}
    return {"state_dict": state, "lumos": {"format": 1, "config": {"seed": 0}, "identity": identity}}


@pytest.fixture
def own(tmp_path: Path, content: dict[str, Any]) -> Path:
    """A run's folder with one complete checkpoint."""
    file = tmp_path / "run" / "checkpoints" / checkpoint_name(1)
    file.parent.mkdir(parents=True)
    partial = partial_of(file)
    torch.save(content, partial)
    complete(partial, file)
    return tmp_path / "run"


@pytest.fixture
def sharded(tmp_path: Path, content: dict[str, Any]) -> Path:
    folder = tmp_path / "sharded.ckpt"
    tensors = {"state_dict": content.pop("state_dict"), "more": {"lr": 1e-3}}
    dcp.save(tensors, checkpoint_id=folder)
    torch.save(content, folder / "meta.pt")
    return folder


@pytest.fixture
def released(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RELEASED))
    weights = {name.removeprefix("net."): t.bfloat16() for name, t in state.items() if name.startswith("net.")}
    save_file(weights, folder / "model.safetensors")
    return folder
