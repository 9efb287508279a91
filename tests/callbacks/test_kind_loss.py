"""Images and videos in turn, of which a logging at every second step would show one kind alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    words = ["run.name=a", f"run.dir={folder}", "trainer.max_steps=8", "trainer.val_every_n_steps=4"]
    shown = ["log_every_n_steps=2", "sample_grid_every_n_steps=4", "progress_bar=false"]
    assert main(["train", "debug", *words, *(f"callbacks.{word}" for word in shown)]) == 0
    return folder / "debug" / "a"


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("phase", ["train", "val"])
def test_each_kind_has_a_curve(records: list[dict[str, float]], phase: str) -> None:
    steps = {"train": [1, 3, 5, 7], "val": [3, 7]}[phase]
    for kind in "image", "video":
        assert [record["step"] for record in records if f"loss/{phase}/{kind}" in record] == steps


def test_they_are_of_their_own_batches(records: list[dict[str, float]]) -> None:
    """Each logging is after one step of images, the last, and one of videos, whose frames have losses of their own."""
    of_step = {record["step"]: record["loss/train"] for record in records if "loss/train" in record}
    of_kind = [record for record in records if "loss/train/image" in record]
    for record in of_kind:
        assert record["loss/train/image"] == pytest.approx(of_step[record["step"]], rel=1e-5)
        assert record["loss/train/video"] != record["loss/train/image"]


def test_each_kind_has_sample_pictures(run: Path) -> None:
    """After every fourth step, which is of images, and after the next one, which is of videos."""
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("samples/train")] == [3, 4, 7]
    assert [event.step for event in events.Images("samples/train_video")] == [4]
