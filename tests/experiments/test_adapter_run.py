"""A run of an adapter: what it keeps, how it goes on, and with what it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_modules.shards.sample import ShardSample
from data_modules.stream.training_sequence import SequenceBuilder, TrainingSequence
from experiments.cli import main
from lumos_pl.adapters.config import OF_ADAPTERS
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.module import LumosModule
from tests.data_modules.shards.shard_files import make_sample, open_writer
from tests.experiments.conftest import SMALL, Train, result, train_small
from tests.processes import lumos
from tests.refusals import refused

FEW = ["trainer.max_steps=4", "trainer.val_every_n_steps=0", "data.val_root=null", "loggers=[]"]
ADAPTER = [
    "adapter.kind=lora",
    "adapter.rank=2",
    "adapter.dropout=0.2",
    "adapter.words=[97,98]",
    "adapter.codes=[7,3]",
    "optimizer.ema_decay=0.9",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("base"), "base", "trainer.max_steps=2", *FEW[1:])


@pytest.mark.seconds
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
    for again in run, run / "adapter":  # which the run has already: it would be added twice
        with refused(ConfigError, where="adapters"):
            load_decoder(run, adapters=[(again, 1.0)])
    other = load_decoder(run, adapters=[(run / "adapter_ema", 0.5)])  # another one adds up
    both = load_decoder(base, adapters=[(run / "adapter", 1.0), (run / "adapter_ema", 0.5)])
    assert all(map(torch.equal, other.net.parameters(), both.net.parameters()))
    opened = LumosModule.load_from_checkpoint(run)
    assert opened.net is not None and opened.net.adapter is not None
    assert [name for name, _ in opened.net.named_parameters() if name in state] == []

    for words, said in (
        (["--adapter", f"{run}=nan"], "--adapter | got nan"),
        (["--ckpt", str(run / "adapter")], "lumos merge"),
    ):
        assert main(["sample", "--prompt", "a dog", *words]) != 0
        assert said in (told := capsys.readouterr().err) and "_adapter" not in told
    for adapter, out in (run, "it"), (run.parent / "latest" / "adapter", "named"):  # the run is the newest
        words = ["--only", "loss", "--clips", "2", "--adapter", str(adapter), "--out", str(run / out)]
        assert main(["eval", str(base), *words, "data.kind=video", "data.val_root=synthetic"]) == 0
    measured = [json.loads((run / out / "eval.json").read_text())["measures"] for out in ("it", "named")]
    assert measured[0] == measured[1]

    base.rename(base.with_name("elsewhere"))
    try:
        assert main(["export-hf", str(run), "--out", str(run / "hf")]) == CheckpointError.exit_status
        assert f"init_from {base}" in capsys.readouterr().err
    finally:
        base.with_name("elsewhere").rename(base)


@pytest.mark.seconds
def test_draws_among_the_wordings_of_a_clip_and_goes_on_drawing(
    base: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wordings = {"plain": "a dog", "trigger": "zorple runs"}
    with open_writer(tmp_path / "clips", samples_per_shard=2) as writer:
        for number in range(4):
            writer.add(make_sample(0, key=f"clip-{number}", text="a dog", captions=wordings))
    read: dict[str, object] = {}
    build = SequenceBuilder.build

    def noted(self: SequenceBuilder, sample: ShardSample, appearance: str) -> TrainingSequence:
        made = build(self, sample, appearance)
        read[appearance] = made.sequence.text_ids
        return made

    monkeypatch.setattr(SequenceBuilder, "build", noted)
    settings = [*FEW[1:], "data.kind=video", f"data.root={tmp_path / 'clips'}", *ADAPTER, f"init_from={base}"]
    whole = train("whole", *settings, "trainer.max_steps=4")
    drawn = read.copy()
    assert len({*drawn.values()} - {None}) == len(wordings), "each was drawn, and none at times: caption_dropout"
    read.clear()
    half = train("half", *settings, "trainer.max_steps=2")
    assert main(["resume", str(half), "trainer.max_steps=4"]) == 0
    assert result(half)["weights_sha256"] == result(whole)["weights_sha256"]
    assert {name: read.get(name) for name in drawn} == drawn


@pytest.mark.parametrize("change", ["rank=3", "kind=dora", "kind=none", "targets=[q_proj]", "words=[97,98,99]"])
def test_of_another_shape_it_is_refused_even_if_changes_are_allowed(
    change: str, base: Path, originals: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_base = [*FEW[1:], *ADAPTER, "adapter.targets=[k_proj]", f"init_from={base}", "trainer.max_steps=1"]
    run = Path(shutil.copytree(originals(*of_base), tmp_path / "run", symlinks=True))
    settings = (run / "config.yaml").read_bytes()
    words = ["resume", str(run), "--allow-changes", "trainer.max_steps=2", f"adapter.{change}"]
    assert main(words) == CheckpointError.exit_status
    assert "does not fit the run's settings" in (said := capsys.readouterr().err) and "| adapter" in said
    assert (run / "config.yaml").read_bytes() == settings
    assert main([*words[:-1], "adapter.alpha=3.0"]) == 0


@pytest.mark.parametrize("setting", ["adapter.frozen=nf4", "adapter.frozen=int8", "optimizer.kind=adamw_8bit"])
def test_of_few_bits_it_goes_on_as_if_never_stopped(setting: str, base: Path, train: Train) -> None:
    pytest.importorskip("torchao")
    of_base = [*FEW[1:], "adapter.kind=lora", f"init_from={base}", setting]
    whole = train("whole", *of_base, "trainer.max_steps=4")
    half = train("half", *of_base, "trainer.max_steps=2")
    assert main(["resume", str(half), "trainer.max_steps=4"]) == 0
    assert result(half)["weights_sha256"] == result(whole)["weights_sha256"]
    load_decoder(half)


def test_needs_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_small(tmp_path, "none", "adapter.kind=lora", status=ConfigError.exit_status)
    assert "an adapter of nothing | init_from" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_two_ranks_train_the_adapter_of_one_and_go_on_from_each_other(
    base: Path, train: Train, tmp_path: Path, kind: str, strategy: str
) -> None:
    settings = [*SMALL, *FEW, *ADAPTER, f"adapter.kind={kind}", "adapter.dropout=0.0", f"init_from={base}"]
    one = train("one", *settings)
    places = [f"run.dir={tmp_path / 'runs'}", "run.name=two"]
    shared_out = ["trainer.devices=2", "trainer.accumulate=1", f"trainer.strategy={strategy}"]
    lumos("train", "debug", *settings, *shared_out, *places, world=2)
    two = tmp_path / "runs" / "debug" / "two"
    files = {file: file.read_bytes() for file in sorted(two.glob("adapter*/*.safetensors"))}
    assert len(files) == 2
    last = two / "checkpoints" / "step-00000004.ckpt"
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    lumos("resume", str(two), world=2)
    assert {file: file.read_bytes() for file in files} == files
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    lumos("resume", str(two), "trainer.devices=1", "trainer.accumulate=2")
    for file in files:
        expected = load_file(one / file.relative_to(two))
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.seconds
def test_the_released_layout_is_tuned_merged_and_released_again(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "lumos1_tiny"
    shape = load_decoder(golden).net.config
    numbers = ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_length"]
    words = [f"model.{name}={getattr(shape, name)}" for name in numbers]
    layout = ["layout.preset=lumos1", "layout.codebook_size=1000"]
    run = train_small(tmp_path, "tuned", *FEW, *words, *layout, "adapter.kind=lora", f"init_from={golden}")
    expected = dict(load_decoder(run).net.named_parameters())
    assert any(not torch.equal(p, expected[name]) for name, p in load_decoder(golden).net.named_parameters())
    steps = [
        ["merge", str(run), "--out", str(tmp_path / "merged.ckpt")],
        ["export-hf", str(tmp_path / "merged.ckpt"), "--out", str(tmp_path / "hf")],
        ["import-hf", str(tmp_path / "hf"), "--out", str(tmp_path / "back.ckpt")],
    ]
    for step in steps:
        assert main(step) == 0
    for name in "merged.ckpt", "hf", "back.ckpt":
        saved = load_decoder(tmp_path / name)
        assert saved.net.config == shape and saved.layout.name == "lumos1"
        assert all(torch.equal(parameter, expected[name]) for name, parameter in saved.net.named_parameters())
