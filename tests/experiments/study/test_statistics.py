from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.study.statistics import estimate, holm, p_value, paired_difference, student_t
from lumos_pl.seeding import generator


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (29, 2.045)]
)
def test_student_t_is_the_published_table(df: int, expected: float) -> None:
    assert student_t(df) == pytest.approx(expected, abs=5e-4)


def test_the_interval_over_seeds() -> None:
    found = estimate([np.array([value]) for value in (1.0, 2.0, 3.0)])
    half = 4.302653 / math.sqrt(3)
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_one_seed_without_samples_tells_no_interval() -> None:
    found = estimate([np.array([1.0])])
    assert found.mean == 1 and math.isnan(found.low) and math.isnan(estimate([]).mean)


def coins(n: int, seed: int) -> np.ndarray:
    import torch

    return torch.randint(2, (n,), generator=generator(seed, "coins")).double().numpy()


def test_more_samples_narrow_the_interval_and_it_is_the_same_every_time() -> None:
    few, many = estimate([coins(50, 0)]), estimate([coins(800, 0)])
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 4, rel=0.25)  # as 1 / sqrt(n)
    assert estimate([coins(50, 0)]) == few


def test_seeds_that_agree_leave_the_doubt_of_the_samples() -> None:
    judged = coins(50, 0)
    assert estimate([judged, judged, judged]).high == estimate([judged]).high
    apart = [np.zeros(50), np.full(50, 0.9)]
    assert estimate(apart).high > 1.5  # the seeds' doubt is the larger one


def test_a_share_is_none_below_0_or_above_1() -> None:
    seeds = [np.zeros(4), np.array([0.0, 0.0, 1.0, 1.0])]
    found = estimate(seeds, share=True)
    assert (found.mean, found.low, found.high) == (0.25, 0.0, 1.0)
    assert estimate(seeds).low < 0  # other figures may be


def test_the_doubts_of_seeds_and_samples_add_up() -> None:
    judged = coins(50, 0)
    seeds = [judged + shift for shift in (-0.1, 0.0, 0.1)]
    of_seeds = estimate([np.array([seed.mean()]) for seed in seeds])
    of_samples, both = estimate([judged]), estimate(seeds)
    reach = math.hypot(of_seeds.high - of_seeds.mean, of_samples.high - of_samples.mean)
    assert both.high - both.mean == pytest.approx(reach, rel=1e-6)


def test_pairing_takes_out_what_a_seed_does_to_all_cells() -> None:
    first = {seed: np.array([10.0 * seed]) for seed in range(3)}
    other = {seed: first[seed] + 1 + 0.01 * seed for seed in (0, 1, 2)} | {9: np.array([5.0])}
    difference = paired_difference(other, first)
    assert difference.n == 3 and 0.9 < difference.low < 1.01 < difference.high < 1.1


def test_cells_of_other_data_are_paired_by_their_means() -> None:
    few = {0: np.array([1.0, 3.0]), 1: np.array([2.0, 4.0])}
    many = {0: np.array([4.0, 5.0, 6.0]), 1: np.array([7.0, 7.0, 7.0])}
    difference = paired_difference(many, few)
    assert (difference.mean, difference.n) == (3.5, 2)


def test_holms_correction_is_the_textbooks() -> None:
    """Four questions, the second and third in each other's order; one without an answer yet counts as one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, math.nan, 0.4]) == pytest.approx([0.6, math.nan, 0.8], nan_ok=True)
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


@pytest.mark.parametrize("values", [[0.1, 0.25, 0.3], [-0.2, -0.05, -0.1, -0.3]])
def test_a_p_value_is_that_of_the_t_test(values: list[float]) -> None:
    """Its interval ends at 0 by construction, so the t of the sample is the quantile at 1 - p."""
    p = p_value([np.array([value]) for value in values])
    mean, n = np.mean(values), len(values)
    t = abs(mean) / (np.std(values, ddof=1) / math.sqrt(n))
    assert student_t(n - 1, 1 - p) == pytest.approx(t, rel=1e-3)


def test_p_falls_below_five_hundredths_where_the_interval_leaves_out_zero() -> None:
    draws = np.random.default_rng(0)
    for shift in (0.02, 0.05, 0.1, 0.2):
        seeds = [draws.normal(shift, 0.3, 48) for _ in range(3)]
        found = estimate(seeds)
        assert (p_value(seeds) < 0.05) == (found.low > 0 or found.high < 0)
    assert math.isnan(p_value([np.array([0.5])]))


def test_a_difference_is_the_same_from_either_side() -> None:
    """Of these captions none went the other way, but another might: the interval does not end at 0."""
    more = {seed: np.array([1.0, 1.0, 0.0, 1.0]) for seed in (0, 1)} | {2: np.ones(4)}
    less = {0: np.array([1.0, 1.0, 0.0, 1.0]), 1: np.zeros(4), 2: np.zeros(4)}
    up, down = paired_difference(more, less), paired_difference(less, more)
    assert (up.low, up.high) == (pytest.approx(-down.high), pytest.approx(-down.low))
    assert up.low < 0 and up.high > 1


def test_seeds_that_judged_other_samples_are_joined_by_their_means() -> None:
    found = estimate([np.array([1.0, 3.0]), np.array([2.0, 4.0, 6.0])])
    assert found == estimate([np.array([2.0]), np.array([4.0])])
