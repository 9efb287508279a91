"""A run of an adapter: what it keeps, how it goes on, and with what it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.cli import main
from lumos_pl.adapters.config import OF_ADAPTERS
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.module import LumosModule
from tests.experiments.conftest import Train, result, train_small

FEW = ["trainer.max_steps=4", "trainer.val_every_n_steps=0", "data.val_root=null", "loggers=[]"]
ADAPTER = ["adapter.kind=lora", "adapter.rank=2", "adapter.dropout=0.2", "optimizer.ema_decay=0.9"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("base"), "base", "trainer.max_steps=2", *FEW[1:])


def test_goes_on_as_if_never_stopped_and_is_used_with_its_base(
    base: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("whole", *FEW, *ADAPTER, f"init_from={base}")
    expected, files = result(run), {file.name: file.read_bytes() for file in sorted(run.glob("adapter*/*.safetensors"))}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(OF_ADAPTERS & set(name.split(".")) for name in state), "the decoder is the base's affair"
    for file in (run / "checkpoints").glob("*4.ckpt"):
        file.unlink()  # as if it had been killed before
    (run / "result.json").unlink()
    assert main(["resume", str(run), "adapter.rank=3"]) == CheckpointError.exit_status
    assert "adapter.rank | got 3, expected 2" in capsys.readouterr().err
    assert main(["resume", str(run)]) == 0
    assert result(run)["weights_sha256"] == expected["weights_sha256"]
    assert {file.name: file.read_bytes() for file in sorted(run.glob("adapter*/*.safetensors"))} == files

    tokens, average = load_decoder(run), load_decoder(run, weights="ema")
    of_folders = [load_decoder(base, adapters=[(run / name, 1.0)]) for name in ("adapter", "adapter_ema")]
    for one, other in zip((tokens, average), of_folders, strict=True):
        assert all(map(torch.equal, one.net.parameters(), other.net.parameters()))
    opened = LumosModule.load_from_checkpoint(run)
    assert opened.net is not None and opened.net.adapter is not None
    assert [name for name, _ in opened.net.named_parameters() if name in state] == []

    base.rename(base.with_name("elsewhere"))
    try:
        assert main(["export-hf", str(run), "--out", str(run / "hf")]) == CheckpointError.exit_status
        assert f"init_from {base}" in capsys.readouterr().err
    finally:
        base.with_name("elsewhere").rename(base)


def test_needs_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_small(tmp_path, "none", "adapter.kind=lora", status=ConfigError.exit_status)
    assert "an adapter of nothing | init_from" in capsys.readouterr().err
