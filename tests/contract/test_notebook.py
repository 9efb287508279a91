"""The notebook of one's own Trainer: its cells run, and what they resume is as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from data_modules.token_data import TokenDataModule
from lumos_pl.module import LumosModule

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "your_own_trainer.ipynb"
MOST_LINES = 15


def code() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_the_notebook_trains_resumes_exactly_and_makes_a_clip(tmp_path: Path) -> None:
    assert sum(len(cell.splitlines()) for cell in code()) <= MOST_LINES
    names: dict[str, Any] = {}
    with inside(tmp_path):
        for cell in code():
            exec(compile(cell, NOTEBOOK.name, "exec"), names)
        assert (tmp_path / "circle.gif").stat().st_size > 0
        resumed: LumosModule = names["module"]
        data: TokenDataModule = names["data"]
        whole = LumosModule(**resumed.hparams)
        again = TokenDataModule(data.config, whole.layout)
        Trainer(max_steps=20, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
            whole, datamodule=again
        )
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
