from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lumos_pl.sampling.draw as draw_module
from lumos_pl.errors import ConfigError
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.draw import (
    BLOCK,
    choose_block,
    choose_code,
    confidence_noise,
    draw_codes,
    least_confident,
    n_remaining_after,
    partial_context_index,
    restrict,
)
from tests.refusals import refused

SCHEDULES = ["cosine", "linear", "square", "sigmoid", "arccos"]
LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def uniform(n: int) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draw_many(config: SamplingConfig, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """Frequency of each code, [K], and the reported log-probability of each that was drawn (NaN: never)."""
    states = torch.ones(n, 1)
    weight = torch.cat([torch.full((2,), 99.0), LOGITS])[:, None]  # two text ids before the codes
    codes, log_p = draw_codes(states, weight, 2, uniform=uniform(n), config=config)
    reported = torch.full((len(LOGITS),), math.nan).index_put((codes,), log_p.float())
    return torch.bincount(codes, minlength=len(LOGITS)) / n, reported


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.7}, [1, 4]),  # p = .077 .571 .210 .010 .347 / 1.215: .47 < .7 <= .755
        ({"top_p": 0.1}, [1]),
        ({"top_k": 3, "top_p": 0.8, "temperature": 0.5}, [1, 4]),
    ],
)
def test_codes_follow_the_restricted_distribution(settings: dict[str, float], allowed: list[int]) -> None:
    config = SamplingConfig(**settings)  # type: ignore[arg-type]
    expected = torch.zeros(len(LOGITS))
    expected[allowed] = (LOGITS[allowed] / config.temperature).softmax(0)
    frequency, reported = draw_many(config)
    torch.testing.assert_close(frequency, expected, atol=0.01, rtol=0)
    assert (frequency[expected == 0] == 0).all()
    # the confidence is the model's own, whatever the drawing does with it
    drawn = frequency > 0
    torch.testing.assert_close(reported[drawn], LOGITS.log_softmax(0)[drawn])


def test_the_smallest_number_draws_no_excluded_code() -> None:
    weight = torch.tensor([[0.0], [1.0], [2.0]])
    config = SamplingConfig(top_k=2)
    codes, _ = draw_codes(torch.ones(1, 1), weight, 0, uniform=torch.zeros(1, dtype=torch.float64), config=config)
    assert codes.tolist() == [1]


def test_least_confident_without_noise() -> None:
    log_p = torch.tensor([-1.0, -3.0, -0.5, -2.0])
    assert set(least_confident(log_p, 2, noise=0.0, uniform=uniform(4)).tolist()) == {1, 3}
    assert least_confident(log_p, 0, noise=0.0, uniform=uniform(4)).tolist() == []


def test_confidence_noise_is_gumbel() -> None:
    """The one of three that stays is then a draw from their probabilities (the Gumbel-max theorem)."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    again = [least_confident(p.log(), 2, noise=1.0, uniform=u) for u in uniform(30_000).view(-1, 3)]
    kept = torch.bincount(3 - torch.stack(again).sum(1), minlength=3) / len(again)
    torch.testing.assert_close(kept.double(), p, atol=0.02, rtol=0)


def test_greedy_takes_the_likeliest() -> None:
    frequency, _ = draw_many(SamplingConfig(greedy=True), n=10)
    assert frequency[1] == 1


@pytest.mark.parametrize("settings", [{"temperature": 1.1e-37}, {"top_p": 1.1e-37}])
def test_the_least_that_is_taken_draws_the_likeliest(settings: dict[str, float]) -> None:
    frequency, _ = draw_many(SamplingConfig(**settings), n=10)  # type: ignore[arg-type]
    assert frequency[1] == 1


@pytest.mark.parametrize("settings", [{}, {"greedy": True}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_of_logits_that_are_not_finite_any_code_is_drawn_and_its_confidence_says_so(
    bad: float, settings: dict[str, Any]
) -> None:
    states, weight = torch.tensor([[1.0], [bad]]), torch.ones(BLOCK + 3, 1)
    codes, log_p = draw_codes(states, weight, 0, uniform=uniform(2), config=SamplingConfig(**settings))
    assert codes.max() < len(weight) and log_p.isfinite().tolist() == [True, False]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    states, weight = torch.randn(37, 8, generator=generator), torch.randn(30, 8, generator=generator)
    whole = draw_codes(states, weight, 10, uniform=uniform(37), config=SamplingConfig())
    for most, value in ("LOGITS_AT_ONCE", 200), ("CACHED_LOGITS", 40), ("BLOCK", 8):
        monkeypatch.setattr(draw_module, most, value)
        for config in SamplingConfig(), SamplingConfig(top_k=20):  # all there are: logits are held, none is left out
            parts = draw_codes(states, weight, 10, uniform=uniform(37), config=config)
            assert torch.equal(whole[0], parts[0])
            torch.testing.assert_close(whole[1].float(), parts[1].float())  # of fp32 logits


def test_restrict_keeps_the_best_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.randn(50, 20, generator=torch.Generator().manual_seed(2)).softmax(1)
    shares = 3 * p
    kept = restrict(shares, top_k=4, top_p=None) > 0
    assert (kept.sum(1) == 4).all() and (p[kept].view(50, 4).amin(1) > p[~kept].view(50, 16).amax(1)).all()
    whole = restrict(shares, top_k=None, top_p=0.6)
    monkeypatch.setattr(draw_module, "LIKELIEST", 6)  # enough for some rows only
    assert torch.equal(restrict(shares, top_k=None, top_p=0.6), whole)
    kept = whole > 0
    mass, smallest = (p * kept).sum(1), p.masked_fill(~kept, 2).amin(1)
    assert (mass >= 0.6).all() and (mass - smallest < 0.6).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "n_codes"), [(1, 6), (4, 1), (8, 64), (50, 6), (10, 20)])
def test_every_schedule_reveals_a_code_a_step_and_ends_with_none_remaining(
    schedule: str, steps: int, n_codes: int
) -> None:
    config = SamplingConfig(steps=steps, schedule=schedule)
    n_remaining = n_codes
    for step in range(steps):
        if n_remaining == 0:
            break
        after = n_remaining_after(step, n_codes, n_remaining, config)
        assert 0 <= after < n_remaining and (after > 0) == (n_remaining > 1 and step < steps - 1)
        n_remaining = after
    assert n_remaining == 0


def test_remaining_counts_of_the_cosine_schedule() -> None:
    config, counts = SamplingConfig(steps=8), [64]
    for step in range(8):
        counts.append(n_remaining_after(step, 64, counts[-1], config))
    assert counts == [64, 62, 59, 53, 45, 35, 24, 12, 0]


def test_confidence_noise_falls_to_zero_anew_in_every_frame() -> None:
    config = SamplingConfig(steps=4, confidence_temperature=2.0)
    for n_generated in 0, 3:
        assert [confidence_noise(s, n_generated, config) for s in range(4)] == [1.5, 1.0, 0.5, 0.0]
    release = replace(config, confidence_anneal="release")
    assert [confidence_noise(s, 0, release) for s in range(4)] == [1.5, 0.75, 0.1875, 0.0]
    assert not any(confidence_noise(s, 1, release) for s in range(4))
    assert not any(confidence_noise(s, 0, replace(config, greedy=True)) for s in range(4))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [0]), (0.5, [0, 2, 4, 6, 8]), (0.7, [0, 1, 3, 4, 6, 7, 9]), (1.0, list(range(10))), (0.4, [0, 2, 5, 8])],
)
def test_partial_context_is_evenly_spaced(share: float, expected: list[int]) -> None:
    assert partial_context_index(10, share).tolist() == expected  # 2.5 -> 2 and 7.5 -> 8: half to even


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"guidance": -1.0},
        {"guidance": math.nan},
        {"partial_context": 1.1},
        {"temperature": 0.0},
        {"temperature": 1e-46},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1e-300},
        {"top_p": 1.5},
        {"confidence_temperature": math.nan},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, float]) -> None:
    (name,) = bad
    with refused(ConfigError, where=f"sampling.{name}", got=bad[name]):
        SamplingConfig(**bad)  # type: ignore[arg-type]


def test_a_number_draws_the_code_that_a_plain_sum_reaches() -> None:
    """Blocks, with a last one that is not full, empty ones and codes without a share, against one sum over all."""
    torch.manual_seed(0)
    shares = torch.rand(6, 1000)
    shares[1, 100:900] = 0  # whole blocks
    shares[2, :999] = 0
    shares[3, 1:] = 0
    shares[4, ::2] = 0
    numbers = torch.cat([torch.linspace(0, 1, 101, dtype=torch.float64)[:-1], torch.tensor([1 - 2**-53]).double()])
    for row in shares:
        blocks = F.pad(row, (0, -len(row) % BLOCK)).view(1, -1, BLOCK).expand(len(numbers), -1, -1)
        block, within = choose_block(blocks.sum(-1), numbers)
        drawn = block * BLOCK + choose_code(blocks[torch.arange(len(block)), block] / 2, within)
        reached = row.double().cumsum(0)
        assert (row[drawn] > 0).all()
        slack = 1e-6 * reached[-1]  # the blocks are summed in fp32
        assert (reached[drawn] >= numbers * reached[-1] - slack).all()
        assert (reached[drawn] - row[drawn] <= numbers * reached[-1] + slack).all()
