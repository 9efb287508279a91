"""Images and videos in turn, of which a logging at every second step would show one kind alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.cli import main


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("runs")
    words = ["run.name=a", f"run.dir={folder}", "trainer.max_steps=8", "trainer.val_every_n_steps=4"]
    assert main(["train", "debug", *words, "callbacks.log_every_n_steps=2", "callbacks.progress_bar=false"]) == 0
    lines = Path(folder, "debug", "a", "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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
