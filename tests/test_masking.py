from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.masking import (
    MASK_KINDS,
    SCHEDULES,
    MaskConfig,
    context_tube_mask,
    diffusion_forcing_mask,
    draw_mask,
    draw_ratio,
    motion_of,
    moving_tube_mask,
    random_mask,
    schedule_ratio,
    tube_decay_mask,
    tube_mask,
)
from tests.refusals import refused

SCHEDULE_NAMES = ["cosine", "linear", "square", "sigmoid", "arccos"]
KINDS = ["tube", "random", "diffusion_forcing", "tube_decay"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
def test_schedules_fall_from_one_to_zero(schedule: str) -> None:
    ratios = [schedule_ratio(schedule, u / 20) for u in range(21)]
    assert ratios[0] == pytest.approx(1) and ratios[-1] == pytest.approx(0)
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize(
    ("schedule", "ratio"),
    [("cosine", 0.923880), ("linear", 0.75), ("square", 0.9375), ("sigmoid", 0.850854), ("arccos", 0.839139)],
)
def test_schedules_by_hand(schedule: str, ratio: float) -> None:
    assert schedule_ratio(schedule, 0.25) == pytest.approx(ratio, abs=1e-5)


def test_drawn_ratios_follow_the_schedule_and_respect_the_minimum() -> None:
    generator = rng()
    ratios = torch.tensor([draw_ratio("cosine", 0.7, generator=generator) for _ in range(4000)])
    assert ratios.min() == pytest.approx(0.7) and ratios.max() <= 1
    share_at_minimum = (ratios < 0.7 + 1e-6).float().mean().item()
    assert share_at_minimum == pytest.approx(1 - math.acos(0.7) * 2 / math.pi, abs=0.03)


@pytest.mark.parametrize(("ratio", "n", "hidden"), [(0.7, 10, 7), (1.0, 10, 10), (0.001, 10, 1), (0.25, 10, 2)])
def test_tube_hides_the_same_positions_in_every_frame(ratio: float, n: int, hidden: int) -> None:
    token_mask = tube_mask(ratio, 4, n, generator=rng())
    assert token_mask.shape == (4, n)
    assert token_mask.sum(1).tolist() == [hidden] * 4
    assert (token_mask == token_mask[0]).all()


def test_tube_hides_every_position_equally_often() -> None:
    generator = rng()
    share = sum(tube_mask(0.5, 1, 8, generator=generator)[0].float() for _ in range(2000)) / 2000
    assert isinstance(share, torch.Tensor)
    assert (share - 0.5).abs().max() < 0.05


def test_random_counts_over_the_whole_clip_and_differs_between_frames() -> None:
    token_mask = random_mask(0.7, 4, 25, generator=rng())
    assert token_mask.sum() == 70
    assert not (token_mask == token_mask[0]).all()


def test_diffusion_forcing_has_a_ratio_and_a_pattern_per_frame() -> None:
    token_mask = diffusion_forcing_mask([0.2, 0.5, 1.0, 0.5], 20, generator=rng())
    assert token_mask.sum(1).tolist() == [4, 10, 20, 10]
    assert not torch.equal(token_mask[1], token_mask[3])


def test_tube_decay_rises_to_one_and_nests() -> None:
    token_mask = tube_decay_mask(0.4, 4, 20, generator=rng())
    assert token_mask.sum(1).tolist() == [8, 12, 16, 20]
    for earlier, later in pairwise(token_mask):
        assert (later | ~earlier).all()
    assert tube_decay_mask(0.4, 1, 20, generator=rng()).sum() == 8


def test_a_context_tube_hides_the_frames_before_it_each_in_its_own_way() -> None:
    begun, shares = set(), []
    for seed in range(60):
        token_mask = context_tube_mask(0.5, 4, 40, generator=rng(seed))
        begin = next(k for k in range(4) if (token_mask[k:] == token_mask[-1]).all())
        assert token_mask[-1].sum() == 20
        assert len(set(token_mask[:begin].sum(1).tolist())) <= 1  # one share of the clip
        begun.add(begin)
        shares += token_mask[:begin].float().mean(1).tolist()
    assert begun == {0, 1, 2, 3}
    assert min(shares) < 0.15 and max(shares) > 0.85


def moving_codes(down: int, right: int, *, noise: float = 0.0, shape: tuple[int, int, int] = (5, 6, 7)) -> Tensor:
    """An object of 3 x 3 codes on plain ground that moves, a share of whose codes are any."""
    draws, (latent_frames, rows, cols) = rng(7), shape
    codes = torch.zeros(shape, dtype=torch.int64)
    thing = torch.arange(1, 10).view(3, 3)
    for frame, y, x in torch.cartesian_prod(torch.arange(latent_frames), torch.arange(3), torch.arange(3)).tolist():
        codes[frame, (1 + y + frame * down) % rows, (2 + x + frame * right) % cols] = thing[y, x]
    codes[0] += 50  # a picture has other codes
    is_noise = torch.rand(shape, generator=draws) < noise
    return torch.where(is_noise, torch.randint(100, 999, shape, generator=draws), codes)


MOVES = [(0, 1), (0, -1), (1, 0), (-1, 0)]


@pytest.mark.parametrize("move", MOVES)
def test_the_motion_of_codes_is_found_in_noise_too(move: tuple[int, int]) -> None:
    assert motion_of(moving_codes(*move)) == motion_of(moving_codes(*move, noise=0.05)) == move


def test_what_stays_changes_at_random_or_is_short_has_no_motion() -> None:
    still, noise = moving_codes(0, 0), moving_codes(0, 0, noise=1)
    assert [motion_of(codes) for codes in (still, noise, moving_codes(0, 1)[:2], still[:1])] == [(0, 0)] * 4


@pytest.mark.parametrize("move", [*MOVES, (0, 0)])
def test_a_moving_tube_is_the_tube_carried_along_place_by_place(move: tuple[int, int]) -> None:
    codes = moving_codes(*move)
    latent_frames, rows, cols = codes.shape
    token_mask = moving_tube_mask(0.5, codes, generator=rng(3)).view(latent_frames, rows, cols + 1)
    tube = tube_mask(0.5, 1, rows * (cols + 1), generator=rng(3)).view(rows, cols + 1)
    for frame in range(latent_frames):
        for row in range(rows):
            came_from = (row - frame * move[0]) % rows
            for col in range(cols):
                assert token_mask[frame, row, col] == tube[came_from, (col - frame * move[1]) % cols]
            assert token_mask[frame, row, cols] == tube[came_from, cols]  # NEWLINE
    assert (token_mask.flatten(1).sum(1) == tube.sum()).all()
    hidden = draw_mask(
        MaskConfig(kind="moving_tube"), *token_mask.flatten(1).shape, generator=rng(), codes=lambda: codes
    )
    assert (hidden == hidden[0]).all() == (move == (0, 0))


@pytest.mark.parametrize(
    ("share", "progress", "others"), [([0.3, 0.3], 0.9, 0.3), ([1, 0], 0, 1), ([1, 0], 0.75, 0.25)]
)
def test_another_kind_takes_its_share_of_the_samples(share: list[float], progress: float, others: float) -> None:
    config = MaskConfig(other="random", other_share=share)
    masks = [draw_mask(config, 3, 40, generator=rng(seed), progress=progress) for seed in range(400)]
    found = sum(not (mask == mask[0]).all() for mask in masks) / 400
    assert found == pytest.approx(others, abs=0.07)


def test_without_another_kind_nothing_more_is_drawn() -> None:
    ratio = draw_ratio("cosine", 0.7, generator=(draws := rng()))
    assert torch.equal(draw_mask(MaskConfig(), 3, 40, generator=rng()), tube_mask(ratio, 3, 40, generator=draws))


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"other": "tubes"}, "other"),
        ({"other_share": [1.0]}, "other_share"),
        ({"other_share": [0, 2]}, "other_share[1]"),
    ],
)
def test_what_is_no_share_of_another_kind_is_refused(wrong: dict[str, Any], where: str) -> None:
    with refused(ConfigError, where=f"mask.{where}"):
        MaskConfig(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_generator_alone(kind: str) -> None:
    config = MaskConfig(kind=kind)
    first, again, other = (draw_mask(config, 3, 30, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.float().mean() >= 0.69


@pytest.mark.parametrize("kind", ["tube", "random", "tube_decay"])
def test_every_draw_draws_its_ratio(kind: str) -> None:
    config = MaskConfig(kind=kind, min_ratio=0)
    hidden = {draw_mask(config, 2, 1000, generator=rng(seed))[0].sum().item() for seed in range(4)}
    assert len(hidden) == 4


def test_every_frame_of_diffusion_forcing_draws_its_ratio() -> None:
    token_mask = draw_mask(MaskConfig(kind="diffusion_forcing", min_ratio=0), 6, 1000, generator=rng())
    assert len(set(token_mask.sum(1).tolist())) > 1


def test_minimum_outside_zero_to_one_is_refused() -> None:
    for bad in (-0.1, 1.5, float("nan")):
        with refused(ConfigError, where="mask.min_ratio"):
            MaskConfig(min_ratio=bad)


@pytest.fixture
def registered() -> Iterator[None]:
    """What a test registers goes again."""
    kinds, schedules = dict(MASK_KINDS), dict(SCHEDULES)
    yield
    for known, before in (MASK_KINDS, kinds), (SCHEDULES, schedules):
        known.clear()
        known.update(before)


@pytest.mark.usefixtures("registered")
def test_a_kind_of_ones_own_is_drawn_like_any_other() -> None:
    def halves(ratio: Callable[[], float], latent_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
        return torch.arange(n_positions).expand(latent_frames, -1) < ratio() * n_positions

    MASK_KINDS["halves"] = halves
    SCHEDULES["steady"] = lambda u: 0.5
    config = MaskConfig(kind="halves", schedule="steady", min_ratio=0.1)
    assert draw_mask(config, 2, 10, generator=rng()).sum(1).tolist() == [5, 5]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "returned",
    [
        lambda latent_frames, n: torch.ones(latent_frames, n),
        lambda latent_frames, n: torch.ones(n, latent_frames, dtype=torch.bool),
        lambda latent_frames, n: torch.zeros(latent_frames, n, dtype=torch.bool),
        lambda latent_frames, n: [[True] * n] * latent_frames,
        lambda latent_frames, n: None,
    ],
)
def test_what_is_no_token_mask_is_refused_with_the_name_of_its_kind(returned: Callable[[int, int], object]) -> None:
    MASK_KINDS["own.kind"] = lambda ratio, latent_frames, n, *, generator: returned(latent_frames, n)  # type: ignore[assignment]
    with refused(ConfigError, where="mask.kind own.kind"):
        draw_mask(MaskConfig(kind="own.kind"), 3, 8, generator=rng())


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("ratio", [1.2, -0.1, math.nan, None])
def test_what_is_no_share_is_refused_with_the_name_of_its_schedule(ratio: float) -> None:
    SCHEDULES["own.steps"] = lambda u: ratio
    with refused(ConfigError, got=ratio) as caught:
        draw_ratio("own.steps", 0.5, generator=rng())
    assert str(caught.value.where).startswith("own.steps")


def test_an_unknown_kind_names_the_nearest_and_a_dotted_one_is_not_imported() -> None:
    with refused(ConfigError, where="mask.kind", got="tubes") as caught:
        MaskConfig(kind="tubes")
    assert "tube?" in str(caught.value.fix)
    with refused(ConfigError, where="mask.kind", got="os.system"):
        MaskConfig(kind="os.system")
