from __future__ import annotations

import json
import sys

import pytest

from bench import manifest_scale


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_one_gives_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    manifest_scale.main(["--samples", "5000", "--step", "30"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["what"] for line in lines} >= {"opened", "first batch", "first batch at step 30"}
    assert all(line["cpu_s"] >= 0 and line["own_mib"] > 0 for line in lines)
