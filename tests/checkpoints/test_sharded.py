from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lumos_pl.checkpoints.initial import PREFIX, load_initial_weights
from lumos_pl.checkpoints.sharded import check_pickles, is_sharded
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def checkpoint(tmp_path: Path, make_decoder: Callable[..., LumosTransformer]) -> Path:
    net = make_decoder(seed=1)
    weights = {PREFIX + name: parameter.detach() for name, parameter in net.named_parameters()}
    folder = tmp_path / "step-00000001.ckpt"
    dcp.save({"state_dict": weights, "optimizer_0": {"param_groups": {"lr": 1e-3}}}, checkpoint_id=folder)
    return folder


def test_weights_come_back(checkpoint: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    assert is_sharded(checkpoint)
    check_pickles(checkpoint)
    net = make_decoder(seed=2)
    load_initial_weights(net, source=checkpoint)
    for loaded, saved in zip(net.parameters(), make_decoder(seed=1).parameters(), strict=True):
        assert torch.equal(loaded, saved)


def test_weights_of_another_shape_are_refused(checkpoint: Path, make_decoder: Callable[..., LumosTransformer]) -> None:
    with pytest.raises(CheckpointError, match="weights do not fit"):
        load_initial_weights(make_decoder(n_layers=3), source=checkpoint)


def test_whole_weights_of_another_shape_are_refused(
    tmp_path: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    state = {PREFIX + name: parameter.detach() for name, parameter in make_decoder(ffn_dim=96).named_parameters()}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"weights do not fit .*gate_proj\.weight"):
        load_initial_weights(make_decoder(), source=tmp_path / "x.ckpt")


def test_hostile_metadata_is_refused_unexecuted(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match=r"refused .*\.metadata.* posix\.mkdir"):
        check_pickles(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_initial_weights_from_hostile_metadata_are_refused_unexecuted(
    checkpoint: Path, tmp_path: Path, make_decoder: Callable[..., LumosTransformer]
) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match="refused"):
        load_initial_weights(make_decoder(), source=checkpoint)
    assert not (tmp_path / "executed").exists()


def test_hostile_values_in_a_ranks_file_are_refused_unexecuted(checkpoint: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(Evil(tmp_path / "executed"), content)
    (file,) = checkpoint.glob("*.distcp")
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())  # our own
    (stored,) = [s for index, s in metadata.storage_data.items() if index.fqn.startswith("optimizer_0")]
    stored.offset, stored.length = file.stat().st_size, len(content.getvalue())
    file.write_bytes(file.read_bytes() + content.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"refused .*\.distcp"):
        check_pickles(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_refused(checkpoint: Path) -> None:
    (file,) = checkpoint.glob("*.distcp")
    file.unlink()
    with pytest.raises(CheckpointError, match="refused"):
        check_pickles(checkpoint)


def test_metadata_that_points_to_another_folder_is_refused(checkpoint: Path) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())  # our own
    (stored, *_) = [s for index, s in metadata.storage_data.items() if index.fqn.startswith("optimizer_0")]
    (checkpoint / "sub").mkdir()
    stored.relative_path = "sub/evil"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="points to another folder"):
        check_pickles(checkpoint)
