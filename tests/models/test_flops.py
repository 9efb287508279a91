"""The figure that all is judged by: `step_flops`, against torch's count of every product that really runs."""

from __future__ import annotations

import pytest
import torch

from lumos_pl.models.config import Recomputed
from tests.models.counted_flops import counted, make_batch, make_module, parts, recomputed_flops


@pytest.mark.parametrize("shapes", [[(3, 6, 6)], [(1, 5, 5), (2, 4, 6)]], ids=["a clip", "image and clip"])
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_step_flops_are_what_torch_counts_without_what_is_recomputed(
    recomputed: Recomputed, shapes: list[tuple[int, int, int]]
) -> None:
    module, batch = make_module(recomputed), make_batch(*shapes)
    total = counted(lambda: module.training_step(batch, 0)["loss"].backward())
    # torch counts the causal text as a full square
    assert total - recomputed_flops(module, batch, recomputed) == pytest.approx(module.step_flops(batch), rel=0.01)


def test_a_forward_pass_is_a_third_of_a_step() -> None:
    module, batch = make_module(), make_batch((3, 6, 6))
    with torch.no_grad():
        assert 3 * counted(lambda: module.training_step(batch, 0)) == pytest.approx(module.step_flops(batch), rel=0.01)


def test_each_part_is_large_enough_here_to_be_missed() -> None:
    forward = parts(make_module(), make_batch((3, 6, 6)))
    assert min(forward.attention, forward.head) > 0.05 * forward.total
