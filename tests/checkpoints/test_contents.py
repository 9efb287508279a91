"""A checkpoint is checked whole, whoever opens it: changes of a real training's content, under a digest that fits."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import experiments.read_config  # noqa: F401 - which knows the sections of a configuration
from experiments.cli import main
from lumos_pl.checkpoints.complete import complete
from lumos_pl.checkpoints.contents import Training
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.opening import open_checkpoint
from lumos_pl.errors import CheckpointError
from tests.refusals import refused, told

MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"
NAME = "step-00000004.ckpt"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def training() -> dict[str, Any]:
    content: dict[str, Any] = torch.load(MADE_BEFORE / "checkpoints" / NAME, weights_only=True)
    return content


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint, to be changed."""
    return Path(shutil.copytree(MADE_BEFORE, tmp_path / "debug" / "before", symlinks=True))


def saved(content: object, run: Path) -> Path:
    """As the run's checkpoint, with its digest."""
    file = run / "checkpoints" / NAME
    torch.save(content, file.with_name("written"))
    complete(file.with_name("written"), file)
    return file


def norm(content: dict[str, Any]) -> Any:
    return content["state_dict"]["net.model.norm.weight"]


def put(*place: Any) -> Change:
    """Set what stands at a place, its last part the new value."""

    def change(content: dict[str, Any]) -> None:
        *sections, key, value = place
        for name in sections:
            content = content[name]
        content[key] = value

    return change


def doubling() -> list[Any]:
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


GROUP = ("optimizer_states", 0, "param_groups", 0)
FIT = ("loops", "fit_loop")
CHANGES: dict[str, tuple[Change, str]] = {
    "a part missing": (lambda c: c.pop("global_step"), "global_step"),
    "the configuration missing": (lambda c: c["lumos"].pop("config"), "lumos.config"),
    "the callbacks missing": (lambda c: c.pop("callbacks"), "callbacks"),
    "another type": (put("state_dict", [1]), "state_dict"),
    "a truth for a count": (put("epoch", True), "epoch"),
    "a step that the name contradicts": (put("global_step", 5), "global_step"),
    "an older Lightning": (put("pytorch-lightning_version", "1.9.0"), "pytorch-lightning_version"),
    "loops without a part": (lambda c: c["loops"]["fit_loop"].pop("epoch_progress"), "loops.fit_loop.epoch_progress"),
    "a method of a loop": (
        put(*FIT, "epoch_progress", "total", "reset", 1),
        "loops.fit_loop.epoch_progress.total.reset",
    ),
    "a callback's state": (
        put("callbacks", "FrameLossBalance", "history", "stride", "a"),
        "callbacks.FrameLossBalance.history.stride",
    ),
    "two optimizers": (lambda c: c["optimizer_states"].append(c["optimizer_states"][0]), "optimizer_states"),
    "an ascent": (put(*GROUP, "maximize", True), "optimizer_states[0].param_groups[0].maximize"),
    "parameters in another order": (
        lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].reverse(),
        "optimizer_states[0].param_groups[0].params",
    ),
    "a state of no shape": (
        put("optimizer_states", 0, "state", 0, "exp_avg", torch.ones(2)),
        "optimizer_states[0].state.net.model.layers.0.self_attn.q_proj.weight.exp_avg",
    ),
    "numbers that share a place": (
        lambda c: c["optimizer_states"][0]["state"][0].update(
            exp_avg_sq=torch.ones(1).expand(c["optimizer_states"][0]["state"][0]["exp_avg_sq"].shape)
        ),
        "optimizer_states[0].state.0.exp_avg_sq",
    ),
    "a tensor for a setting": (put("lumos", "config", "seed", torch.ones(2)), "lumos.config"),
    "negative squares": (
        lambda c: c["optimizer_states"][0]["state"][0]["exp_avg_sq"].fill_(-1),
        "optimizer_states[0].state.net.model.layers.0.self_attn.q_proj.weight.exp_avg_sq",
    ),
    "a method of the schedule": (put("lr_schedulers", 0, "step", 1), "lr_schedulers[0].step"),
    "a schedule elsewhere": (put("lr_schedulers", 0, "last_epoch", 1), "lr_schedulers[0].last_epoch"),
    "whole numbers": (put("state_dict", "net.model.norm.weight", torch.ones(32).long()), "model.norm.weight"),
    "a NaN": (lambda c: norm(c).fill_(float("nan")), "model.norm.weight"),
    "averages missing": (
        lambda c: [c["state_dict"].pop(name) for name in list(c["state_dict"]) if name.startswith("ema.")],
        "model.embed_tokens.weight",
    ),
    "a tensor of nobody's": (put("state_dict", "other.weight", torch.ones(2)), "state_dict.other.weight"),
    "averages that were not asked for": (
        lambda c: (
            put("lumos", "config", "optimizer", "ema_decay", 0.0)(c),
            put("lumos", "identity", "optimizer", "ema", False)(c),
        ),
        "state_dict.ema.",
    ),
    "another model's configuration": (
        put("lumos", "config", "model", "rope_theta", 5e5),
        "lumos.config.model.rope_theta",
    ),
    "settings that cannot be": (put("lumos", "config", "optimizer", "lr", -1), "optimizer.lr"),
    "settings of another type": (put("lumos", "config", "data", "num_workers", "a"), "data.num_workers"),
    "a self-doubling list": (put("lumos", "config", "about", doubling()), "lumos.config.about"),
    "a circle": (put("lumos", "config", "about", cyclic()), "lumos.config.about.again"),
    "a number without end": (put("global_step", 10**80), "global_step"),
    "half of a letter": (put("lumos", "losses", "a\ud800", 1.0), "lumos.losses"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_with_its_field(name: str, training: dict[str, Any], run: Path) -> None:
    change, field = CHANGES[name]
    change(training)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(saved(training, run))
    assert str(error.value.where).startswith(field) or "at most" in str(error.value.expected), error.value


@pytest.mark.parametrize(
    "name",
    ["a part missing", "a callback's state", "whole numbers", "settings that cannot be", "a tensor of nobody's"],
)
def test_who_goes_on_and_who_takes_the_weights_say_the_same(
    name: str, training: dict[str, Any], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CHANGES[name][0](training)
    saved(training, run)
    lines: set[tuple[str, ...]] = set()
    for command in (
        ["resume", str(run), "callbacks.progress_bar=false"],
        ["export-hf", str(run), "--out", str(tmp_path / "out")],
    ):
        capsys.readouterr()
        assert main(command) == 4
        lines.add(tuple(told(capsys.readouterr().err)))
    assert len(lines) == 1


def test_weights_alone_are_no_training(training: dict[str, Any], run: Path) -> None:
    file = saved({name: training[name] for name in ("state_dict", "lumos")}, run)
    assert not isinstance(open_checkpoint(file).parts, Training)
    assert main(["resume", str(run), "callbacks.progress_bar=false"]) == 4


def rewrite(file: Path, record: str, change: Callable[[bytes], bytes], *, method: int = zipfile.ZIP_STORED) -> None:
    """Change a record of an archive, with the right checksum, and give it a digest."""
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(file.with_name("written"), "w") as written:
        for name in archive.namelist():
            chosen = name.endswith(record)
            data = change(archive.read(name)) if chosen else archive.read(name)
            written.writestr(name, data, compress_type=method if chosen else zipfile.ZIP_STORED)
    complete(file.with_name("written"), file)


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda data: b""])
def test_a_record_is_as_long_as_its_tensor(change: Callable[[bytes], bytes], run: Path) -> None:
    rewrite(run / "checkpoints" / NAME, "data/2", change)
    with refused(CheckpointError, file=NAME, where="data/2"):
        load_decoder(run)


def test_records_are_not_compressed(run: Path) -> None:
    rewrite(run / "checkpoints" / NAME, "data/2", bytes, method=zipfile.ZIP_DEFLATED)
    with refused(CheckpointError, file=NAME, got="compressed"):
        load_decoder(run)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_record_is_there_twice(run: Path) -> None:
    file = run / "checkpoints" / NAME
    with zipfile.ZipFile(file, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/2"))
        archive.writestr(name, archive.read(name))
    file.with_name(f"{NAME}.sha256").unlink()
    with refused(CheckpointError, file=NAME, got="a record twice"):
        load_decoder(file)


def test_a_tensor_does_not_reach_beyond_its_record(run: Path) -> None:
    file = saved({"a": torch.zeros(2, 2)}, run)
    rewrite(file, "data.pkl", lambda data: data.replace(b"K\x02K\x02\x86", b"K\x02K\x09\x86", 1))  # of size [2, 9]
    with refused(CheckpointError, file=NAME, got="a tensor reaches beyond data/0"):
        open_checkpoint(file)


def never_ends(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("name", [NAME, f"{NAME}.sha256"])
def test_a_file_that_never_ends_is_not_read(name: str, run: Path) -> None:
    never_ends(run / "checkpoints" / name)
    with refused(CheckpointError):
        load_decoder(run)
    with refused(CheckpointError, file=name):
        load_decoder(run / "checkpoints" / NAME)


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
@pytest.mark.filterwarnings("ignore:torch.distributed")
def test_a_part_that_never_ends_is_not_read(name: str, sharded: Path) -> None:
    never_ends(sharded / name)
    with refused(CheckpointError, file=name):
        load_decoder(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_released_file_that_never_ends_is_not_read(name: str, released: Path) -> None:
    never_ends(released / name)
    with refused(CheckpointError, file=name):
        load_decoder(released)
