from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_modules.shards.manifest import Manifest
from data_modules.shards.table import ShardEntry
from experiments.assemble import assemble
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.plan import memory
from experiments.plan.batches import mean_mask_ratio
from experiments.plan.plan import Plan, plan_experiment
from experiments.plan.table import verdict
from experiments.plan.words import GPUS, USABLE, gpu_like
from experiments.read_config import experiment_names, load_experiment
from lumos_pl.errors import ConfigError
from lumos_pl.layout import LayoutConfig, lumos1_layout
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig, Placement, Recomputed
from lumos_pl.models.parameters import layer_matrices
from lumos_pl.module import LumosModule
from tests.experiments.circumstances import memory_of
from tests.refusals import refused, told
from tests.tiny_checkpoint import write_checkpoint


@pytest.fixture(autouse=True)
def no_shards_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan reads the shards that the experiment names, if they lie in the working folder."""
    monkeypatch.chdir(tmp_path)


# Two real steps of a run, without logs and checkpoints; prints the second one's peak above what was there before.
STEP = """
import gc, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
from lightning import Callback, Trainer
from experiments.assemble import assemble
from experiments.read_config import load_experiment

def resident(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

class Peak(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def on_train_batch_end(self, *_):
        self.bytes = resident("VmHWM")

def fit(*overrides):
    config, peak = load_experiment("debug", overrides), Peak()
    parts = assemble(config)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, callbacks=[peak], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )
    trainer.fit(parts.module, parts.data)
    return peak.bytes

fit("callbacks.progress_bar=false", *(word for word in sys.argv[1:] if "checkpointing" in word))
if any("adapter" in word for word in sys.argv):
    import peft.tuners.lora  # which takes memory of its own
gc.collect()
base = resident("VmRSS")
print(fit("callbacks.progress_bar=false", *sys.argv[1:]) - base)
"""
SMALL = [
    "layout.preset=lumos1",
    "layout.codebook_size=64000",
    "model.size=small",
    "model.max_length=10000",
    "data.kind=video",
    "data.video.batch_size=1",
    "data.video.frames=17",
    "data.synthetic.n_samples=8",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small decoder, for adapters."""
    file = tmp_path_factory.mktemp("base") / "small.ckpt"
    write_checkpoint(file, of_layout=LayoutConfig(), of_model=ModelConfig(size="small", max_length=10_000))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter", [[], ["kind=lora", "rank=16"], ["kind=dora", "rank=4"]], ids=["all", "lora", "dora"]
)
@pytest.mark.parametrize(("side", "recomputed"), [(192, "none"), (256, "none"), (256, "selective"), (256, "full")])
def test_memory_is_what_a_run_takes(side: int, recomputed: str, adapter: list[str], base: Path) -> None:
    pixels = [f"data.synthetic.{edge}={side}" for edge in ("width", "height")]
    words = [*SMALL, *pixels, f"model.activation_checkpointing={recomputed}", *(f"adapter.{word}" for word in adapter)]
    words += [f"init_from={base}"] if adapter else []
    planned = plan_experiment("debug", words)
    # so that glibc gives freed memory back: its gaps are not the step's need
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEP, *words], capture_output=True, text=True, check=True, env=environment
    )
    measured = int(done.stdout.split()[-1])
    print(
        f"{planned.batches[0].tokens:.0f} tokens: planned {planned.peak / 2**20:.0f} MiB, {measured / 2**20:.0f} taken"
    )
    assert planned.peak == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("experiment", [name for name in experiment_names() if name.startswith("t2")])
def test_every_recipe_has_a_plan_without_its_data(experiment: str) -> None:
    plan = plan_experiment(experiment, ["gpus=48"])
    assert plan.fits and plan.days is not None and plan.tokens_per_second is not None
    operations = plan.steps * sum(batch.share * batch.flops.total for batch in plan.batches)
    waiting = plan.steps * sum(batch.share * plan.traffic[batch.kind].exposed for batch in plan.batches)
    assert plan.days * 86_400 == pytest.approx(operations / (48 * 989e12 * 0.4) + waiting)
    assert plan.exposed == pytest.approx(waiting / (plan.days * 86_400)) and waiting > 0
    tokens_per_step = sum(batch.share * batch.tokens for batch in plan.batches)
    assert plan.tokens_per_second * plan.days * 86_400 == pytest.approx(plan.steps * tokens_per_step)


def test_a_copy_per_node_takes_a_nodes_share() -> None:
    """Of 48 GPUs that hold a copy per 8, each has an eighth of the weights, gradients and moments; all else alike."""
    shared = plan_experiment("t2v_1b", ["gpus=48"])
    copies = plan_experiment("t2v_1b", ["gpus=48", "trainer.shard_size=8"])
    assert (shared.placement.shard_size, copies.placement.shard_size) == (48, 8)
    for component in "weights", "optimizer", "gradients":
        some, all_of_them = (plan.memory["update"][component] for plan in (copies, shared))
        assert some == pytest.approx(6 * all_of_them)
    assert copies.memory["loss"]["communication"] == shared.memory["loss"]["communication"]
    with refused(ConfigError, where="trainer.reshard_after_forward", got=False):
        plan_experiment("t2v_1b", ["trainer.strategy=ddp", "trainer.reshard_after_forward=false"])
    with refused(ConfigError, where="trainer.shard_size", got=8, expected="a divisor of 12"):
        plan_experiment("t2v_1b", ["gpus=12", "trainer.shard_size=8"])


def test_what_is_offloaded_moves_from_the_gpu_to_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    """16 bytes a parameter, shared by 8; what a unit needs for its turn stays on the GPU."""
    words = ["trainer.devices=8", "data.kind=image"]
    there, here = (plan_experiment("t2v_1b", [*words, *more]) for more in ([], ["trainer.cpu_offload=true"]))
    moved = sum(here.host.values()) - here.host["copy being saved"]
    assert moved == pytest.approx(2 * there.parameters.total, rel=1e-6)
    assert here.peak == there.peak - moved
    assert there.host == {"copy being saved": moved * 3 // 4}  # all but the gradients
    assert sum(here.memory["update"].values()) == 0
    assert plan_experiment("t2v_1b", [*words, "trainer.cpu_offload=true", "gpu=cpu"]).host == {}
    assert main(["plan", "t2v_1b", *words, "trainer.cpu_offload=true"]) == 0
    assert "in the host's memory, GiB per GPU: 4.90 (weights 0.70, gradients 0.70" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("experiment", "words", "recompute"),
    [
        ("t2v_1b", [], "none"),
        ("t2v_1b", ["model.activation_checkpointing=full"], "full"),
        ("t2v_1b_384p", [], "selective"),
        ("t2v_1b_384p", ["gpu=h200-141g"], "none"),
        ("t2v_3b", [], "full"),
        ("t2v_3b", ["gpus=48"], "none"),
        ("t2v_3b", ["gpu=4090-24g"], "full"),  # which does not fit either: it is what takes least
    ],
)
def test_what_is_recomputed_is_the_least_that_fits(experiment: str, words: list[str], recompute: str) -> None:
    alone = ["gpus=1", "data.kind=video", *words]
    plan = plan_experiment(experiment, alone)
    assert plan.placement.recompute == recompute
    assert plan.fits == ("gpu=4090-24g" not in words)
    if not any("checkpointing" in word for word in words):
        peaks = {
            kind: plan_experiment(experiment, [*alone, f"model.activation_checkpointing={kind}"])
            for kind in ("none", "selective", "full")
        }
        assert recompute == next((kind for kind, other in peaks.items() if other.fits), "full")
        assert f"recompute {recompute} (none {min_peak(plan, 'none'):.1f}, " in plan.placed


def min_peak(plan: Plan, recompute: Recomputed) -> float:
    """GiB as the plan's line says it."""
    found = re.search(rf"\b{recompute} ([0-9.]+)", plan.placed)
    assert found is not None
    return float(found[1])


@pytest.mark.seconds
def test_what_is_shared_is_what_the_gpus_wait_least_for() -> None:
    """Kept layers where they fit; a copy per node where several batches a step gather over slow links; as is said."""

    def settled(*words: str) -> tuple[int, bool, bool]:
        placement = plan_experiment("t2v_1b", ["gpus=48", *words]).placement
        return placement.shard_size, placement.reshard_after_forward, placement.reduce_once

    assert settled() == (48, False, False)
    assert settled("gpus=8", "gpu=4090-24g") == (8, True, False)
    # the one copy keeps the links busier, and waits less for them
    assert settled("bandwidth=5", "trainer.accumulate=2", "data.kind=image", "mfu=0.5") == (48, False, True)
    slow = ["bandwidth=5", "trainer.accumulate=4"]
    assert settled(*slow) == (8, False, True)
    assert settled(*slow, "node=5") == (48, False, True)  # no copies on nodes of 5
    assert settled(*slow, "trainer.shard_size=null", "trainer.reshard_after_forward=true") == (48, True, True)
    assert settled(*slow, "trainer.shard_size=4") == (4, False, True)
    every = plan_experiment("t2v_1b", ["gpus=48", *slow])
    other = plan_experiment("t2v_1b", ["gpus=48", *slow, "trainer.shard_size=null"])
    assert every.exposed is not None and other.exposed is not None and every.exposed < other.exposed
    assert every.placed.endswith("shards over 8, layers gathered once, gradients exchanged once a step")


def test_training_settles_it_for_the_memory_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run where nothing, and where each layer has to be recomputed: a line says so, all else is alike."""
    config = load_experiment("debug")
    assert isinstance(config, ExperimentConfig) and config.model.activation_checkpointing == "auto"
    digests = {}
    for recompute in "none", "full":
        peak = plan_experiment("debug", [f"model.activation_checkpointing={recompute}"]).peak
        limit = int(peak / USABLE) + 2**20
        with memory_of(limit):
            parts = assemble(config)
        assert parts.placed is not None and parts.placed.placement == Placement(recompute=recompute)
        module = parts.module
        assert isinstance(module, LumosModule)
        assert module.model_config.activation_checkpointing == recompute
        words = ["trainer.max_steps=2", "callbacks.progress_bar=false", "trainer.val_every_n_steps=0"]
        with memory_of(limit):
            assert main(["train", "debug", *words, f"run.dir={tmp_path}", f"run.name={recompute}"]) == 0
        assert ("settled: recompute full (none 0.0" in capsys.readouterr().out) == (recompute == "full")
        run = tmp_path / "debug" / recompute
        assert "activation_checkpointing: auto" in (run / "config.yaml").read_text()
        digests[recompute] = json.loads((run / "result.json").read_text())["weights_sha256"]
    assert digests["none"] == digests["full"]


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 80, Placement(shard_size=8, reshard_after_forward=False)),
        ("NVIDIA GeForce RTX 4090", 24, Placement(recompute="selective", shard_size=8)),
    ],
)
def test_training_settles_it_for_the_gpu_at_hand(
    name: str, gib: int, expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `lumos plan` does for eight of the same."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    properties = SimpleNamespace(total_memory=gib << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    config = load_experiment("t2v_1b", ["data.kind=video"])
    assert isinstance(config, ExperimentConfig)
    video = ShardEntry(file="a.tar", n_samples=1, n_bytes=1, sha256="0" * 64, shapes=(0,), text_lengths=(200,))
    manifest = Manifest(tokenizer="t", codebook_size=64_000, strides=(4, 8, 8), shapes=((7, 32, 56),), shards=(video,))
    placed = memory.place_here(config, {"video": manifest})
    words = ["data.kind=video", "gpus=8", f"gpu={gpu_like(name)}", "size=448x256"]
    assert placed.placement == expected == plan_experiment("t2v_1b", words).placement


def test_a_video_of_the_recipe_by_hand() -> None:
    (image, video) = plan_experiment("t2v_1b", ["gpus=2", "trainer.accumulate=3", "text=100"]).batches
    assert video.sample_tokens == 105 + 7 * (32 * 57 + 4)
    assert (image.samples, video.samples) == (6 * 6, 6)
    assert video.tokens == 6 * video.sample_tokens
    assert video.flops.body == 6 * 16 * layer_matrices(ModelConfig(size="1b").build(lumos1_layout())) * video.tokens
    assert video.flops.head == pytest.approx(6 * 2048 * 64_000 * 6 * 7 * 32 * 56 * 0.8002, rel=1e-3)


def test_the_share_of_hidden_tokens() -> None:
    """max(0.7, cos(pi u / 2)) is above 0.7 up to u = 0.506, and its integral is 0.8002."""
    assert mean_mask_ratio(MaskConfig()) == pytest.approx(0.8002, abs=1e-4)
    assert mean_mask_ratio(MaskConfig(kind="tube_decay", min_ratio=1.0)) == 1


def test_samples_come_from_the_manifest_where_it_is(tmp_path: Path) -> None:
    entry = ShardEntry(
        file="a.tar", n_samples=4, n_bytes=1, sha256="0" * 64, shapes=(0, 0, 0, 1), text_lengths=(10, 10, 10, 30)
    )
    (tmp_path / "videos").mkdir()
    manifest = Manifest(
        tokenizer="t", codebook_size=64_000, strides=(4, 8, 8), shapes=((9, 4, 4), (2, 8, 8)), shards=(entry,)
    )
    manifest.save(tmp_path / "videos")
    few, many = 15 + 7 * 24, 35 + 2 * 76  # cut to 7 latent frames; the rarer ones are longer
    words = ["data.kind=video", f"data.root={tmp_path}", "gpus=1"]
    (batch,) = plan_experiment(
        "t2v_1b", [*words, "data.video.batch_size=5", f"data.video.max_tokens={2 * many}"]
    ).batches
    assert batch.sample_tokens == (3 * few + many) / 4
    assert sum(spans.length for spans in batch.longest) == 2 * many
    replace(manifest, shards=(replace(entry, text_lengths=(20_000,) * 4),)).save(tmp_path / "videos")
    plan_experiment("t2v_1b", words)  # bytes of captions: their ids may fit
    (batch,) = plan_experiment("t2v_1b", [*words, "size=64x64"]).batches  # said, so not looked up
    assert batch.sample_tokens == 205 + 7 * 76


def test_what_does_not_fit_names_the_first_setting_that_does() -> None:
    plain = ["trainer.strategy=ddp", "model.activation_checkpointing=none"]

    def fix(*words: str) -> list[str] | None:
        return plan_experiment("t2v_1b", [*plain, *words]).fix

    assert fix("gpu=h200-141g") == []
    recompute, shard = "model.activation_checkpointing=full", "trainer.strategy=fsdp2"
    assert fix("gpu=a100-80g", "data.video.batch_size=3") == ["model.activation_checkpointing=selective"]
    assert fix("gpu=4090-24g") == fix("gpu=4090-24g", recompute.replace("full", "selective")) == [recompute, shard]
    many = fix("gpu=4090-24g", "data.video.batch_size=16", "data.image.batch_size=4")
    assert many is not None and many[:2] == [recompute, shard] and many[2].startswith("data.image.batch_size=")
    alone = plan_experiment("t2v_3b", ["gpu=4090-24g", "gpus=1"])
    assert alone.fix is not None and alone.fix[-1] == "trainer.cpu_offload=true" and not alone.fits
    long = plan_experiment("t2v_3b", ["gpu=4090-24g", "gpus=1", "size=1024x576", "model.max_length=100000"])
    assert long.fix is None and "No setting" in verdict(long)
    smaller = plan_experiment("t2v_1b", [*plain, "gpu=4090-24g", recompute, shard])
    assert smaller.fits and smaller.peak < smaller.usable  # type: ignore[operator]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gpu=h100"], "gpu"),
        (["gpus=0"], "gpus"),
        (["gpus=many"], "gpus"),
        (["mfu=nan"], "mfu"),
        (["size=big"], "size"),
        (["link=fast"], "link"),
        (["link=0gbit"], "link"),
        (["disk=2"], "disk"),
        (["samples=60MB"], "samples"),
        (["gpu_hours=0"], "gpu_hours"),
        (["size=440x256"], "got 440, expected a multiple of 32 px"),
        (["gpuz=4"], "got gpuz"),
        (["model.max_length=4096"], "data.video.frames"),
        (["data.root=elsewhere"], "elsewhere"),
    ],
)
def test_words_that_do_not_fit_are_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "t2v_1b", *words]) in (2, 3)
    captured = capsys.readouterr()
    assert captured.out == "" and part in told(captured.err)


def test_a_tokenizer_has_no_plan() -> None:
    with refused(ConfigError, where="task"):
        plan_experiment("tokenizer_fsq", [])


def test_it_prints_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "t2v_1b", "gpus=48", "gpu=h20-96g", "trainer.max_steps=77"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("communication", "fits h20-96g", "77 steps in", "Not measured"))
    assert main(["plan", "t2v_1b", "--json", "gpus=48"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["peak"] == sum(plan["memory"][plan["fullest"]].values()) <= GPUS["h100-80g"].mebibytes << 20
    assert plan["steps"] == 100_000


def test_a_cpu_experiment_gets_memory_only() -> None:
    plan = plan_experiment("debug", [])
    assert (plan.gpu, plan.fits, plan.days) == ("cpu", None, None) and plan.peak > 0
    assert verdict(plan).startswith("needs")


def test_a_size_beside_the_grid_is_a_wrong_word() -> None:
    with refused(ConfigError, where="size", got=449):
        plan_experiment("t2v_1b", ["size=449x256"])
