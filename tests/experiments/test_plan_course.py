"""What a plan says of a whole run: by hand, by the order that training takes, and beside a run's own files."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import pytest

from data_modules.shards.manifest import Manifest
from data_modules.shards.table import ShardEntry
from data_modules.stream.plan import StreamPlan
from data_modules.stream.position import StreamPosition
from data_modules.stream.token_stream import training_order
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.plan.course import readers_of_a_stream
from experiments.plan.plan import plan_experiment
from experiments.plan.words import PlanWords
from experiments.read_config import load_experiment
from lumos_pl.layout import lumos1_layout
from tests.experiments.conftest import SMALL, Train


@pytest.fixture(autouse=True)
def no_shards_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan reads the shards that the experiment names, if they lie in the working folder."""
    monkeypatch.chdir(tmp_path)


def manifest(n_shards: int, each: int) -> Manifest:
    shards = tuple(
        ShardEntry(
            file=f"{number}.tar",
            n_samples=each,
            n_bytes=1,
            sha256="0" * 64,
            shapes=(0,) * each,
            text_lengths=(10,) * each,
        )
        for number in range(n_shards)
    )
    return Manifest(tokenizer="t", codebook_size=64_000, strides=(4, 8, 8), shapes=((7, 4, 4),), shards=shards)


# -- data ------------------------------------------------------------------------------------------


def test_epochs_and_the_share_that_is_seen() -> None:
    """100,000 steps, half of them of images, 6 on each of 48 GPUs; of videos one on each."""
    data = plan_experiment("t2v_1b", ["gpus=48", "samples=28.8M"]).data
    assert (data["image"].trained, data["image"].epochs, data["image"].seen) == (14_400_000, 0.5, 0.5)
    assert data["video"].epochs == pytest.approx(2_400_000 / 28_800_000)
    twice = plan_experiment("t2v_1b", ["gpus=48", "samples=1200000", "trainer.accumulate=2"]).data["video"]
    assert (twice.epochs, twice.seen) == (4, 1)
    unknown = plan_experiment("t2v_1b", ["gpus=48"]).data["image"]
    assert unknown.samples is unknown.epochs is unknown.seen is None


def test_a_manifest_says_how_many_samples_there_are(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    manifest(20, 50).save(tmp_path / "videos")
    words = ["gpus=2", "data.kind=video", f"data.root={tmp_path}", "trainer.max_steps=3000", "samples=7"]
    video = plan_experiment("t2v_1b", words).data["video"]
    assert (video.samples, video.epochs, video.streams) == (1000, 6, 16)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("streams", "ranks", "workers", "accumulate", "kind", "known"),
    [
        pytest.param(64, 48, 2, 1, "joint", 3, marks=pytest.mark.slow),
        pytest.param(96, 48, 2, 1, "joint", 1, marks=pytest.mark.slow),
        (16, 8, 2, 1, "joint", 1),
        (16, 4, 3, 1, "video", None),
        (12, 4, 3, 1, "video", 1),
        (16, 6, 2, 2, "joint", None),
        (10, 4, 2, 3, "joint", None),
    ],
)
def test_the_readers_of_a_stream_are_those_that_take_from_it(
    streams: int, ranks: int, workers: int, accumulate: int, kind: str, known: int | None
) -> None:
    """In the order itself, over so many batches that each stream has met all that it will meet."""
    words = [f"data.kind={kind}", f"data.num_workers={workers}", f"trainer.accumulate={accumulate}"]
    config = load_experiment("t2v_1b", [*words, f"data.image.streams={streams}", f"data.video.streams={streams}"])
    assert isinstance(config, ExperimentConfig)
    layout, kinds = lumos1_layout(), sorted(set(config.data.pattern))
    plans = {one: StreamPlan(manifest(streams, 1), config.data.source(one), layout, kind=one, seed=0) for one in kinds}
    taken: dict[str, set[tuple[int, int, int]]] = {one: set() for one in kinds}
    for rank in range(ranks):
        position = StreamPosition(start=0, rank=rank, world_size=ranks, per_step=ranks * accumulate)
        for worker in range(workers):
            turns = config.data.order(position.per_step)
            order = training_order(worker, workers, plans=plans, order=turns, position=position)
            for batch in islice(order, 12 * streams):
                taken[batch.kind].add((batch.stream, rank, worker))
    for one in kinds:
        found = readers_of_a_stream(config, one, streams, ranks)
        assert found == len(taken[one]) / streams and known in (None, found)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides", [(), ("optimizer.kind=muon", "optimizer.ema_decay=0.9"), ("optimizer.kind=adamw_8bit",)]
)
def test_a_checkpoint_takes_what_is_planned(overrides: tuple[str, ...], trained: Train) -> None:
    if overrides == ("optimizer.kind=adamw_8bit",):
        pytest.importorskip("torchao")
    run = trained("one", *overrides)
    (newest,) = (run / "checkpoints").glob("step-00000006.ckpt")
    planned = plan_experiment("debug", [*SMALL, *overrides]).saves.n_bytes
    assert planned <= newest.stat().st_size <= 1.05 * planned


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["checkpoint.keep=3"], 4),
        (["checkpoint.keep=0"], 101),
        (["checkpoint.keep=2", "checkpoint.keep_every_n_steps=20000"], 8),
        (["checkpoint.keep=500"], 101),
        (["checkpoint.every_n_steps=0"], 2),
    ],
)
def test_the_disk_has_room_for_what_is_kept_and_what_is_written(words: list[str], kept: int) -> None:
    saves = plan_experiment("t2v_1b", ["gpus=48", *words]).saves
    assert (saves.kept, saves.disk) == (kept, kept * saves.n_bytes)


def test_what_saving_takes_by_hand() -> None:
    """12 bytes a parameter at 3 GB/s, written behind the training that waits for the copy of a GPU's part."""
    plan = plan_experiment("t2v_3b", ["gpus=48", "disk=3GB/s", "gpu_hours=4800", "data.kind=video"])
    saves, step = plan.saves, plan.days * 86_400 / plan.steps  # type: ignore[operator]
    assert saves.n_bytes == 12 * plan.parameters.total
    assert saves.seconds == pytest.approx(saves.n_bytes / 3e9)
    assert saves.blocking == pytest.approx(saves.n_bytes / 48 / 25e9)
    assert saves.stop == pytest.approx(step + saves.blocking + saves.seconds)  # type: ignore[operator]
    assert saves.lost == pytest.approx(500 + saves.seconds / step)
    assert saves.failures == pytest.approx(plan.steps * step / (100 * 3600))
    young = max(math.sqrt(2 * saves.blocking * 100 * 3600), saves.seconds) / step  # type: ignore[operator, type-var]
    assert saves.best_every == pytest.approx(young, rel=0.3)
    waits = plan_experiment("t2v_1b", ["gpus=1", "trainer.strategy=auto", "data.kind=image"]).saves
    assert waits.blocking == waits.seconds and waits.best_every is not None


def test_a_run_of_a_cpu_has_bytes_alone() -> None:
    saves = plan_experiment("debug", []).saves
    assert saves.n_bytes > 0 and saves.seconds is saves.stop is saves.best_every is None


# -- machines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "leaving"),
    [("200gbit", 25 / 8), ("8x400gbit", 50), ("8 x 400 Gbit/s", 50), ("25GB/s", 25 / 8), ("100000MB/s", 100 / 8)],
)
def test_what_leaves_a_node_is_shared_by_its_gpus(link: str, leaving: float) -> None:
    assert PlanWords(link=link).leaving == pytest.approx(leaving)
    assert PlanWords(bandwidth=7).leaving == 7


def test_a_slow_link_costs_time() -> None:
    slow, fast = (plan_experiment("t2v_3b", ["gpus=48", f"link={link}"]) for link in ("200gbit", "8x400gbit"))
    assert slow.exposed > 5 * fast.exposed and slow.days > fast.days  # type: ignore[operator]


@pytest.mark.parametrize("words", [["gpus=48"], ["gpus=40"], ["gpus=48", "link=400gbit", "gpu_hours=100"], ["gpus=8"]])
def test_who_follows_the_advice_gets_none(words: list[str]) -> None:
    first = plan_experiment("t2v_1b", words)
    followed = [setting for advice in first.advice for setting in advice.setting.split()]
    assert plan_experiment("t2v_1b", [*words, *followed]).advice == []
    streams = {"48": "96", "40": "80"}.get(words[0].partition("=")[2])
    assert (f"data.video.streams={streams}" in followed) == (streams is not None)


def test_fewer_shards_than_streams_are_not_advised(tmp_path: Path) -> None:
    for kind in "images", "videos":
        (tmp_path / kind).mkdir()
        manifest(70, 1).save(tmp_path / kind)
    plan = plan_experiment("t2v_1b", ["gpus=48", f"data.root={tmp_path}"])
    assert plan.data["video"].readers == 3
    assert not [advice for advice in plan.advice if advice.setting == "data.video.streams=96"]


def test_a_nodes_memory_grows_with_what_it_holds() -> None:
    def node(*words: str) -> dict[str, int]:
        return plan_experiment("t2v_3b", ["gpus=48", *words]).node

    few, many = node(), node("samples=60M", "data.num_workers=8", "data.video.streams=640")
    assert "manifests" not in few and many["manifests"] == 8 * 2 * 37 * 60_000_000
    assert many["data workers"] == 4 * few["data workers"]
    assert many["shards being read"] > few["shards being read"]
    assert few["copy being saved"] == pytest.approx(8 * 12 / 48 * plan_experiment("t2v_3b", []).parameters.total)


def test_all_of_it_is_printed_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "t2v_1b", "gpus=48", "samples=60M", "disk=2GB/s", "link=200gbit"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("epochs", "disk of the run", "a stop takes", "data.video.streams=96"))
    assert main(["plan", "t2v_1b", "gpus=48", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["saves"]["n_bytes"] > 0 and plan["data"]["video"]["readers"] == 3 and plan["node"] and plan["advice"]
