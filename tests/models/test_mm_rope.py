from __future__ import annotations

import pytest
import torch

from lumos_pl.errors import ConfigError
from lumos_pl.models.mm_rope import (
    ROPE_KINDS,
    RopeKind,
    check_rope,
    frequency_axes,
    position_scale,
    rope_cos_sin,
    rotate,
)
from tests.refusals import refused

KINDS = ["mm", "1d", "3d_block", "3d_block_scaled", "3d_distributed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_frequencies", [16, 32, 64])
def test_axes_share_the_frequencies_two_to_three_to_three(kind: str, n_frequencies: int) -> None:
    axes = frequency_axes(kind, n_frequencies)
    assert len(axes) == n_frequencies
    if kind != "1d":
        assert axes.bincount().tolist() == [n_frequencies * part // 8 for part in (2, 3, 3)]


def test_distributed_axes_by_hand() -> None:
    letters = "".join("thw"[axis] for axis in frequency_axes("mm", 32).tolist())
    assert letters == "tttthhwwhhwwhhww" * 2
    assert "".join("thw"[axis] for axis in frequency_axes("3d_block", 16).tolist()) == "tttthhhhhhwwwwww"


@pytest.mark.parametrize("kind", KINDS)
def test_text_gets_plain_rope(kind: str) -> None:
    index = torch.arange(100)
    cos, sin = rope_cos_sin(index[:, None].expand(-1, 3), kind=kind, head_dim=64, theta=10_000.0)
    frequencies = 10_000.0 ** (-torch.arange(32) / 32)
    angles = torch.cat([index[:, None] * frequencies] * 2, dim=1)
    torch.testing.assert_close(cos, angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin, angles.sin(), atol=1e-5, rtol=0)


def test_scales() -> None:
    scales = {kind: position_scale(kind, (4, 8, 8)) for kind in KINDS}
    assert scales == {
        "mm": (4, 8, 8), "3d_block_scaled": (4, 8, 8), "3d_block": (1, 1, 1), "3d_distributed": (1, 1, 1), "1d": None
    }  # fmt: skip


def test_attention_scores_depend_on_relative_positions_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 64, generator=generator) for _ in range(2))

    def score(shift: int) -> float:
        def turned(x: torch.Tensor, at: list[int]) -> torch.Tensor:
            return rotate(x, *rope_cos_sin(torch.tensor([at]) + shift, kind="mm", head_dim=64, theta=1e4))

        return (turned(query, [3, 9, 4]) * turned(key, [7, 1, 20])).sum().item()

    assert score(0) == pytest.approx(score(50), abs=1e-3)
    assert abs(score(0) - (query * key).sum().item()) > 1e-2


@pytest.mark.parametrize(
    "kind",
    [
        RopeKind(axes=lambda index: index % 4, scale=None),
        RopeKind(axes=lambda index: index[1:] % 3, scale=None),
        RopeKind(axes=lambda index: index / 3, scale=None),
        RopeKind(axes=torch.zeros_like, scale=lambda strides: (1, 1, 0)),
        RopeKind(axes=torch.zeros_like, scale=lambda strides: (1, 1)),  # type: ignore[arg-type,return-value]
        RopeKind(axes=torch.zeros_like, scale=lambda strides: 2),  # type: ignore[arg-type,return-value]
        RopeKind(axes=torch.zeros_like, scale=(4, 8, 8)),  # type: ignore[arg-type]
        torch.zeros_like,
    ],
)
def test_a_kind_of_ones_own_that_gives_no_axes_is_refused(kind: RopeKind) -> None:
    ROPE_KINDS["own.kind"] = kind
    try:
        with refused(ConfigError, where="model.rope own.kind"):
            check_rope("own.kind", 16, (4, 8, 8))
    finally:
        del ROPE_KINDS["own.kind"]
