from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lumos_pl.checkpoints.complete import checkpoint_name, complete
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.transformer import LumosTransformer
from tests.refusals import refused

from .conftest import LAYOUT, MODEL

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")  # saving the sharded one

Make = Callable[..., LumosTransformer]


def same(net: LumosTransformer, other: LumosTransformer, dtype: torch.dtype = torch.float32) -> bool:
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return net.config == other.config and all(torch.equal(own, ref.to(dtype)) for own, ref in pairs)


@pytest.mark.parametrize(("kind", "dtype"), [("own", "float32"), ("sharded", "float32"), ("released", "bfloat16")])
def test_every_form_becomes_the_same_decoder(
    kind: str, dtype: str, request: pytest.FixtureRequest, make_decoder: Make, layout: TokenLayout
) -> None:
    saved = load_decoder(request.getfixturevalue(kind))
    assert same(saved.net, make_decoder(seed=1), getattr(torch, dtype))
    assert saved.layout == layout
    assert saved.config == ({} if kind == "released" else {"seed": 0})
    assert not saved.net.training and not any(parameter.requires_grad for parameter in saved.net.parameters())
    assert len(saved.digest) == 64


@pytest.mark.parametrize("kind", ["own", "sharded"])
def test_averaged_weights(kind: str, request: pytest.FixtureRequest, make_decoder: Make) -> None:
    assert same(load_decoder(request.getfixturevalue(kind), weights="ema").net, make_decoder(seed=5))


def test_averaged_weights_that_are_not_there(released: Path, content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"] = {name: t for name, t in content["state_dict"].items() if name.startswith("net.")}
    torch.save(content, tmp_path / "x.ckpt")
    with refused(CheckpointError, file="x.ckpt"):
        load_decoder(tmp_path / "x.ckpt", weights="ema")
    with refused(CheckpointError, file="released"):
        load_decoder(released, weights="ema")


def test_the_digest_is_the_files(own: Path) -> None:
    file = own / "checkpoints" / checkpoint_name(1)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [load_decoder(source).digest for source in (own, file, file.with_name("last.ckpt"))] == [digest] * 3
    file.with_name(file.name + ".sha256").unlink()
    assert load_decoder(file).digest == digest
    assert load_decoder(file).file == file


def test_the_digest_of_a_folder_is_of_its_weights_and_config(released: Path) -> None:
    digest = load_decoder(released).digest
    (released / "README.md").write_text("not a part of it")
    moved = released.rename(released.with_name("moved"))
    assert load_decoder(moved).digest == digest
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert load_decoder(moved).digest != digest


def test_a_run_stands_for_its_newest_complete_checkpoint(
    own: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for step in 2, 3:
        file = own / "checkpoints" / checkpoint_name(step)
        partial = partial_of(file)
        torch.save(content, partial)
        complete(partial, file)
    file.write_bytes(file.read_bytes()[:-1])
    assert load_decoder(own).file.name == checkpoint_name(2)
    assert "passed over" in caplog.text and checkpoint_name(3) in caplog.text


def test_a_flipped_bit_is_found(own: Path) -> None:
    file = own / "checkpoints" / checkpoint_name(1)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with refused(CheckpointError, file="step-00000001.ckpt", where="step-00000001.ckpt"):
        load_decoder(file)


def test_nothing_to_load(tmp_path: Path) -> None:
    with refused(CheckpointError, file="nowhere"):
        load_decoder(tmp_path / "nowhere")
    with refused(CheckpointError):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("lumos", "fields"),
    [
        (None, {"where": "lumos"}),
        ([], {"where": "lumos"}),
        ({"format": 1, "config": {}, "identity": {"tokenizer": {}}}, {}),
        ({"format": 2, "config": {}, "identity": {"layout": LAYOUT, "model": MODEL}}, {"got": "2"}),
        ({"layout": {"codebook_size": 59}}, {"where": "lumos.identity"}),
        ({"layout": {"codebook_size": -1}}, {"where": "codebook_size", "got": "-1"}),
        ({"layout": {"preset": ["compact"]}}, {"where": "preset", "expected": "lumos1 or compact"}),
        ({"model": {"n_layers": 3}}, {"where": "model.layers.2.input_layernorm.weight"}),
        ({"model": {"n_layers": 1}}, {"where": "model.layers.1.input_layernorm.weight"}),
        ({"model": {"n_layers": 10**9}}, {"where": "n_layers", "got": "1000000000"}),
        (
            {"model": {"ffn_dim": 96}},
            {"where": "model.layers.0.mlp.gate_proj.weight", "got": "[128, 64]", "expected": "[96, 64]"},
        ),
        ({"model": {"rope": "2d"}}, {"where": "rope", "got": "'2d'"}),
        ({"model": {"rope_theta": "1e4"}}, {"where": "rope_theta", "got": "'1e4'"}),
        ({"model": {"strides": [4, 8]}}, {"where": "strides", "got": "[4, 8]"}),
        ({"model": {"dim": None}}, {"where": "dim", "got": "None"}),
        ({"model": {"head_dim": 24}}, {"where": "model.head_dim"}),
        ({"model": {"experts": 8}}, {"where": "experts"}),
    ],
)
def test_a_description_that_cannot_be(
    lumos: Any, fields: dict[str, str], content: dict[str, Any], tmp_path: Path
) -> None:
    if isinstance(lumos, dict) and "format" not in lumos:  # a change to a good one
        identity = {"layout": LAYOUT | lumos.get("layout", {}), "model": MODEL | lumos.get("model", {})}
        lumos = {"format": 1, "config": {}, "identity": identity}
    torch.save(content | {"lumos": lumos}, tmp_path / "x.ckpt")
    with refused(CheckpointError, file="x.ckpt", **fields):
        load_decoder(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("tensor", "fields"),
    [
        (torch.ones(64, dtype=torch.int64), {"where": "model.norm.weight"}),
        (torch.ones(1).expand(64), {"where": "state_dict.net.model.norm.weight"}),
        (torch.ones(64).to_sparse(), {"where": "state_dict.net.model.norm.weight"}),
        (torch.ones(64, device="meta"), {}),
        (torch.ones(63), {"where": "model.norm.weight"}),
        (1.0, {"where": "state_dict.net.model.norm.weight"}),
    ],
)
def test_weights_that_are_none(tensor: object, fields: dict[str, str], content: dict[str, Any], tmp_path: Path) -> None:
    content["state_dict"]["net.model.norm.weight"] = tensor
    torch.save(content, tmp_path / "x.ckpt")
    with refused(CheckpointError, file="x.ckpt", **fields):
        load_decoder(tmp_path / "x.ckpt")


def test_a_single_process_reads_a_sharded_one_without_a_word(sharded: Path, recwarn: pytest.WarningsRecorder) -> None:
    recwarn.clear()  # saving it did warn
    load_decoder(sharded)
    assert not recwarn.list


def test_a_sharded_one_without_its_description_is_refused(sharded: Path) -> None:
    (sharded / "meta.pt").unlink()
    with refused(CheckpointError, file="sharded.ckpt"):
        load_decoder(sharded)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"rope_theta": 5e5}, "rope_theta"), ({"rope": "1d"}, "rope"), ({"ffn_dim": 96}, "ffn_dim")],
)
@pytest.mark.parametrize("kind", ["own", "sharded", "released"])
def test_a_training_starts_only_from_its_own_architecture(
    kind: str, change: dict[str, Any], field: str, request: pytest.FixtureRequest, make_decoder: Make
) -> None:
    with refused(CheckpointError, where=field):
        load_initial_weights(make_decoder(**change), source=request.getfixturevalue(kind))


def test_a_training_may_be_longer_than_its_start(own: Path, make_decoder: Make) -> None:
    net = make_decoder(seed=2, max_length=99)
    load_initial_weights(net, source=own)
    weights: list[Tensor] = list(make_decoder(seed=1).parameters())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
