"""The notebooks: their cells run, one after the other, and what they hold is small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from lumos_pl.pipeline import LumosPipeline

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 400_000  # of a notebook with its outputs


def code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_are_small(notebook: Path) -> None:
    assert notebook.stat().st_size < MOST_BYTES


@pytest.mark.seconds
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    generate = LumosPipeline.generate

    def quickly(self: LumosPipeline, *args: Any, **settings: Any) -> Any:
        sampling = settings.pop("sampling", None) or self.sampling
        few = type(sampling)(**{**vars(sampling), "steps": 2})
        return generate(self, *args, sampling=few, **settings)

    monkeypatch.setattr(LumosPipeline, "generate", quickly)
    names: dict[str, Any] = {}
    for cell in code(notebook):
        exec(compile(cell, notebook.name, "exec"), names)
