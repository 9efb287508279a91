from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.checkpoints.opening import open_checkpoint
from lumos_pl.checkpoints.sharded import is_sharded, load_sharded_tensors, sharded_content
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer
from tests.hostile import Evil
from tests.refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")


def test_weights_come_back(sharded: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    assert is_sharded(sharded)
    sharded_content(sharded)
    net = make_decoder(seed=2)
    load_initial_weights(net, source=sharded)
    for loaded, saved in zip(net.parameters(), make_decoder(seed=1).parameters(), strict=True):
        assert torch.equal(loaded, saved)


def test_weights_of_another_shape_are_refused(sharded: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    with refused(CheckpointError, file="sharded.ckpt", where="n_layers", got="2", expected="3"):
        load_initial_weights(make_decoder(n_layers=3), source=sharded)
    with refused(CheckpointError, file="sharded.ckpt"):
        load_sharded_tensors(make_decoder(ffn_dim=96).named_parameters(), sharded, "net.")


def test_hostile_metadata_is_refused_unexecuted(sharded: Path, tmp_path: Path) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with refused(CheckpointError, file=".metadata", got="it asks for posix.mkdir"):
        sharded_content(sharded)
    assert not (tmp_path / "executed").exists()


def test_initial_weights_from_hostile_metadata_are_refused_unexecuted(
    sharded: Path, tmp_path: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    (sharded / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with refused(CheckpointError, file=".metadata", got="it asks for posix.mkdir"):
        load_initial_weights(make_decoder(), source=sharded)
    assert not (tmp_path / "executed").exists()


def test_hostile_values_in_a_ranks_file_are_refused_unexecuted(sharded: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(Evil(tmp_path / "executed"), content)
    (file,) = sharded.glob("*.distcp")
    metadata = pickle.loads((sharded / ".metadata").read_bytes())  # our own
    (stored,) = [s for index, s in metadata.storage_data.items() if index.fqn.startswith("more")]
    stored.offset, stored.length = file.stat().st_size, len(content.getvalue())
    file.write_bytes(file.read_bytes() + content.getvalue())
    (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    with refused(CheckpointError, file="__0_0.distcp"):
        sharded_content(sharded)
    assert not (tmp_path / "executed").exists()


def test_a_part_of_the_ranks_is_not_in_the_rest_too(sharded: Path) -> None:
    rest = torch.load(sharded / "meta.pt", weights_only=True)
    torch.save(rest | {"state_dict": {"net.lm_head.weight": torch.ones(1)}}, sharded / "meta.pt")
    with refused(CheckpointError, file="meta.pt", where="state_dict"):
        open_checkpoint(sharded)


def test_the_optimizers_single_numbers_are_read(tmp_path: Path) -> None:
    state = {"optimizer_0": {"state.a.step": torch.tensor(7.0), "state.a.exp_avg": torch.ones(2)}}
    dcp.save(state, checkpoint_id=tmp_path / "x.ckpt")
    (saved,) = sharded_content(tmp_path / "x.ckpt")["optimizer_states"]
    assert saved["state"]["a"]["step"] == 7 and saved["state"]["a"]["exp_avg"].is_meta


def test_a_missing_file_is_refused(sharded: Path) -> None:
    (file,) = sharded.glob("*.distcp")
    file.unlink()
    with refused(CheckpointError, file="__0_0.distcp"):
        sharded_content(sharded)


def test_metadata_that_points_to_another_folder_is_refused(sharded: Path) -> None:
    metadata = pickle.loads((sharded / ".metadata").read_bytes())  # our own
    (stored, *_) = [s for index, s in metadata.storage_data.items() if index.fqn.startswith("more")]
    (sharded / "sub").mkdir()
    stored.relative_path = "sub/evil"
    (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    with refused(CheckpointError, file="evil", got="it points to another folder"):
        sharded_content(sharded)


def moved(stored: Any, by: int) -> None:
    stored.offset += by


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda tensor, stored: tensor.chunks.clear(), "state_dict.net.lm_head.weight"),
        (lambda tensor, stored: tensor.chunks.append(tensor.chunks[0]), "state_dict.net.lm_head.weight"),
        (lambda tensor, stored: setattr(tensor, "size", torch.Size([3, 64])), "state_dict.net.lm_head.weight"),
        (lambda tensor, stored: setattr(tensor.properties, "dtype", torch.int64), "state_dict.net.lm_head.weight"),
        (lambda tensor, stored: setattr(stored, "length", 10**9), "state_dict.net.lm_head.weight"),
        (lambda tensor, stored: setattr(stored, "length", "a"), None),
        (lambda tensor, stored: setattr(stored, "offset", -1), None),
        (lambda tensor, stored: moved(stored, -100), None),
    ],
)
def test_what_lies_elsewhere_than_it_is_said_to_is_refused(
    change: Callable[[Any, Any], None], where: str | None, sharded: Path
) -> None:
    metadata = pickle.loads((sharded / ".metadata").read_bytes())  # our own
    name = "state_dict.net.lm_head.weight"
    (stored,) = [place for index, place in metadata.storage_data.items() if index.fqn == name]
    change(metadata.state_dict_metadata[name], stored)
    (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    fields = {} if where is None else {"where": where}
    with refused(CheckpointError, **fields):
        sharded_content(sharded)


def test_numbers_that_are_not_finite_are_found_in_a_ranks_file(sharded: Path, content: dict[str, Any]) -> None:
    weights = {"state_dict": {"net.lm_head.weight": torch.full((3, 2), float("nan"))}}
    dcp.save(weights, checkpoint_id=sharded)
    with refused(CheckpointError, where="state_dict.net.lm_head.weight"):
        sharded_content(sharded)


def test_one_run_saves_as_often_as_it_likes(tmp_path: Path) -> None:
    """torch 2.11 and 2.12 close what copies the state after its first copy."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        writer = BackgroundWriter(timedelta(seconds=60))
        for step in range(3):
            weight = torch.full((4,), float(step))
            writer.start({"state_dict": {"w": weight}}, {"step": step}, tmp_path / str(step)).result()
        for step in range(3):
            read = {"state_dict": {"w": torch.empty(4)}}
            dcp.state_dict_loader.load(read, checkpoint_id=tmp_path / str(step))
            assert read["state_dict"]["w"].tolist() == [step] * 4
    finally:
        dist.destroy_process_group()
