from __future__ import annotations

import pytest

from lumos_pl.shape_world.fidelity import lost


def test_what_is_forgotten_is_a_mean_over_the_same_captions() -> None:
    before = [{"joint": True}] * 8 + [{"joint": False}] * 2
    after = [{"joint": True}] * 7 + [{"joint": False}] * 3
    found = lost(before, after)
    assert found["joint"] == pytest.approx(0.1)
    assert found["low"] == pytest.approx(0.1 - 1.96 * 0.1, abs=2e-4)
    assert found["high"] == pytest.approx(0.1 + 1.96 * 0.1, abs=2e-4)
    assert lost(before, before) == {"joint": 0.0, "low": 0.0, "high": 0.0}
