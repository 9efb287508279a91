"""From a run to the released format and back, and on with the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.cli import main
from lumos_pl.checkpoints.decoder import load_decoder
from tests.refusals import told

from .conftest import Train, metrics


def first_loss(run: Path) -> float:
    losses = [record["loss/train"] for record in metrics(run) if "loss/train" in record]
    return float(losses[0])


@pytest.mark.seconds
def test_training_continues_from_an_import(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = train("source", "trainer.max_steps=3", "optimizer.ema_decay=0.5", "optimizer.lr=1e-2")
    latest = source.parent / "latest"
    exported, imported = tmp_path / "exported", tmp_path / "imported.ckpt"
    assert main(["export-hf", str(latest), "--out", str(exported)]) == 0
    assert main(["import-hf", str(exported), "--out", str(imported)]) == 0
    assert str(imported) in capsys.readouterr().out
    fresh, *continued = (
        first_loss(train(name, "trainer.max_steps=1", "seed=3", *start))
        for name, *start in (
            ("fresh",),
            ("from_run", f"init_from={source / 'checkpoints' / 'last.ckpt'}"),
            ("from_import", f"init_from={imported}"),
            ("from_export", f"init_from={exported}"),
        )
    )
    assert continued[0] == continued[1] == continued[2] != fresh


def test_what_the_flags_of_an_export_do(train: Train, tmp_path: Path) -> None:
    source = train("source", "trainer.max_steps=2", "optimizer.ema_decay=0.5", "optimizer.lr=1e-2")
    out = tmp_path / "out"
    flags = ["--weights", "ema", "--dtype", "bfloat16", "--max-shard-size", "50KB"]
    assert main(["export-hf", str(source), "--out", str(out), *flags]) == 0
    assert len(list(out.glob("*.safetensors"))) > 1
    averaged = load_decoder(source, weights="ema").net
    for own, average in zip(load_decoder(out).net.parameters(), averaged.parameters(), strict=True):
        assert torch.equal(own, average.bfloat16())


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["import-hf", "nowhere", "--out", "x.ckpt"], 4, "nowhere"),
        (["import-hf", "bad", "--out", "x.ckpt"], 4, "config.json"),
        (["export-hf", "nowhere", "--out", "x"], 4, "nowhere"),
        (["export-hf", "bad", "--out", "bad"], 2, "--out"),
        (["export-hf", "bad", "--out", "x", "--max-shard-size", "5"], 2, "--max-shard-size"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str],
    status: int,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    assert main(arguments) == status
    assert any(found.endswith(part) for found in told(capsys.readouterr().err)[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
