"""Ranks that share what is made and judged: the same pictures and figures as of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.sampled_clips import SampledClips
from callbacks.team import Team
from lumos_pl.machinery.stop_request import BrokenOff
from tests.callbacks.clips_to_show import CLIP, CONFIG, WORLD, TrueClips
from tests.processes import on_ranks


def trainer(rank: int, world: int, folder: Path) -> Any:
    steps = {"global_step": 3, "max_steps": 3, "sanity_checking": False, "loggers": []}
    return SimpleNamespace(
        global_rank=rank, world_size=world, is_global_zero=rank == 0, default_root_dir=folder, **steps
    )


def module(pipeline: Any) -> Any:
    return SimpleNamespace(
        pipeline=lambda ranks: pipeline, layout=SimpleNamespace(strides=(4, 8, 8)), check_makes_clips=lambda *_: None
    )


def shared_list(rank: int, world: int) -> list[int]:
    team = Team.of(trainer(rank, world, Path()))
    return [*team.gathered([10 * number for number in team.part(list(range(7)))]), team.worst(rank)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_come_together_in_their_order(world: int, tmp_path: Path) -> None:
    assert on_ranks(world, shared_list, tmp_path) == [0, 10, 20, 30, 40, 50, 60, world - 1]


def show(rank: int, world: int, folder: Path, n_prompts: int) -> Any:
    pipeline = TrueClips()
    prompts = list(pipeline.drawn)[:n_prompts]
    shown = SampledClips(prompts, clip=CLIP, sampling=CONFIG)
    shown.on_train_start(trainer(rank, world, folder), module(pipeline))
    shown.on_train_end(trainer(rank, world, folder), module(pipeline))
    return [asked for asked, _ in pipeline.asked], prompts


@pytest.mark.seconds
@pytest.mark.parametrize("n_prompts", [1, 5])
def test_every_rank_makes_its_part_of_the_picture(n_prompts: int, tmp_path: Path) -> None:
    pictures = []
    for world in 1, 2:
        folder = tmp_path / str(world)
        folder.mkdir()
        asked, prompts = on_ranks(world, show, tmp_path, folder, n_prompts)
        assert asked == [prompts[::world]]
        pictures.append([(folder / name).read_bytes() for name in ("samples.png", "samples.gif")])
    assert pictures[0] == pictures[1]


def broken_off_on_the_last(rank: int, world: int, folder: Path) -> int:
    """That rank has no time: all drop the picture; and where one is to stop, all are."""
    shown = SampledClips(list(TrueClips().drawn)[:6], clip=CLIP, sampling=CONFIG)
    shown.max_seconds = -1 if rank else 1e9
    shown.on_train_start(trainer(rank, world, folder), module(TrueClips()))
    shown.on_train_end(trainer(rank, world, folder), module(TrueClips()))
    assert len(shown.prompts) == 3 and not (folder / "samples.png").exists()

    class Stopped(TrueClips):
        def generate(self, *arguments: Any, **named: Any) -> Any:
            if rank:
                raise BrokenOff(143)
            return super().generate(*arguments, **named)

    shown.on_train_start(trainer(rank, world, folder), module(TrueClips()))
    try:
        shown.on_train_end(trainer(rank, world, folder), module(Stopped()))
    except BrokenOff as stop:
        return int(str(stop.code))
    return 0


@pytest.mark.seconds
def test_what_one_rank_cannot_make_no_rank_shows(tmp_path: Path) -> None:
    assert on_ranks(2, broken_off_on_the_last, tmp_path, tmp_path) == 143


def judge_together(rank: int, world: int, folder: Path, wrong: int | None) -> Any:
    judged = CaptionFidelity(4, WORLD, CONFIG)
    model = TrueClips(wrong if rank == world - 1 else None)
    judged.on_train_start(trainer(rank, world, folder), module(model))
    judged.on_train_end(trainer(rank, world, folder), module(model))
    return judged.summary()["caption_fidelity"] if rank == 0 else None


@pytest.mark.seconds
def test_figures_are_those_of_one_rank(tmp_path: Path) -> None:
    assert on_ranks(2, judge_together, tmp_path, tmp_path, None) == judge_together(0, 1, tmp_path, None)
    found = on_ranks(2, judge_together, tmp_path, tmp_path, 1)  # of four clips the last rank has the last wrong
    assert found == judge_together(0, 1, tmp_path, 3)
