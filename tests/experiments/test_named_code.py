"""A visual tokenizer that is a program runs by the user's own word alone, never because a file names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from experiments.cli import main
from lumos_pl import LumosPipeline
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.module import LumosModule
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.refusals import refused, told
from tests.tiny_checkpoint import write_checkpoint
from tests.tokenizers.cosmos_stand_in import write_stand_in


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows when TorchScript is loaded."""
    seen: list[str] = []

    def load(*args: object, **options: object) -> None:
        seen.append("a program")
        raise RuntimeError("nothing is executed here. ")

    monkeypatch.setattr(torch.jit, "load", load)
    return seen


@pytest.fixture(params=["cosmos", "looks-like-weights.safetensors"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_stand_in(tmp_path / request.param)


def in_a_run(folder: Path, program: Path) -> list[str]:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"visual_tokenizer": str(program)}))
    return ["resume", str(folder)]


@pytest.mark.parametrize("command", ["sample", "eval", "resume"])
def test_a_command_refuses_what_a_file_names(
    command: str, program: Path, opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "x.ckpt", visual_tokenizer=str(program))
    out = ["--out", str(tmp_path / "out")]
    words, own_word = {
        "sample": (["sample", "--ckpt", str(checkpoint), "--prompt", "x", *out], ["--tokenizer", str(program)]),
        "eval": (["eval", str(checkpoint), "--only", "i2v", *out], [f"visual_tokenizer={program}"]),
        "resume": (in_a_run(tmp_path / "run", program), [f"visual_tokenizer={program}"]),
    }[command]
    assert main(words) == 4
    _, file, field, got, fix = told(capsys.readouterr().err)
    assert Path(file).name in ("x.ckpt", "config.yaml") and field == "visual_tokenizer" and str(program) in got
    assert "visual_tokenizer=" in fix and not opened
    main([*words, *own_word])
    assert command != "sample" or opened == ["a program"]


def test_python_refuses_it_too(program: Path, opened: list[str], tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "x.ckpt", visual_tokenizer=str(program))
    with refused(CheckpointError, file=checkpoint, where="visual_tokenizer"):
        LumosPipeline.load(checkpoint)
    assert LumosPipeline.load(checkpoint, visual_tokenizer="embedded").saved is not None
    module = LumosModule.load_from_checkpoint(checkpoint, map_location="cpu")
    with refused(ConfigError, where="visual_tokenizer"):
        module.check_makes_clips()
    assert not opened
    with refused(CheckpointError):
        LumosPipeline.load(checkpoint, visual_tokenizer=str(program))
    assert opened == ["a program"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("place", ["text_tokenizer", "visual_tokenizer"])
@pytest.mark.parametrize("named", ["/dev/zero", "/etc/passwd", "//host/share/x", "~", "\0", "x" * 5000, "fifo"])
def test_a_file_may_name_what_is_no_tokenizer(named: str, place: str, opened: list[str], tmp_path: Path) -> None:
    if named == "fifo":
        os.mkfifo(tmp_path / named)
        named = str(tmp_path / named)
    settings: dict[str, object] = {"visual_tokenizer": named}
    if place == "text_tokenizer":
        settings = {"data": {"prompt": "{caption}", "text_tokenizer": named}}
    with refused(LumosError) as caught:
        LumosPipeline.load(write_checkpoint(tmp_path / "x.ckpt", **settings))
    assert "root:" not in str(caught.value) and not opened


@pytest.mark.parametrize(
    "load", [load_visual_tokenizer, lambda source: load_visual_tokenizer(source, named_by=Path("x.ckpt"))]
)
def test_data_is_loaded_whoever_names_it(load: Callable[[str], object]) -> None:
    assert load("embedded") is load("embedded")
