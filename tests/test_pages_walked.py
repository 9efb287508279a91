"""A page of the docs whose commands are done as they are written, from an empty folder, with small budgets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import build_world

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What the reader's own `lumos` would be, with few steps of everything.
LUMOS = f"""
set -eu
lumos() {{
  case "$1 $2" in
    "train tokenizer_fsq") set -- "$@" trainer.max_steps=2 callbacks.sample_grid_every_n_steps=0 ;;
    "train "*) set -- "$@" trainer.max_steps=2 callbacks.sample_grid_every_n_steps=0 sampling.steps=1 ;;
  esac
  {sys.executable} -m experiments.cli "$@"
}}
"""


def section(page: str, title: str, language: str) -> list[str]:
    """The blocks of a language under a heading."""
    (content,) = re.findall(rf"^##+ {title}[^\n]*\n(.*?)(?=^##|\Z)", (DOCS / page).read_text(), re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```$", content, re.M | re.S)


def film(folder: Path, numbers: range) -> None:
    """Clips as a user has them, each with its caption beside it."""
    folder.mkdir(parents=True)
    world = build_world(WorldConfig())
    for number in numbers:
        scene = world.scene("train", number, seed=0)
        (folder / f"{number}.mp4").write_bytes(encode_mp4(world.film(scene), WorldConfig().fps, "yuv444p"))
        (folder / f"{number}.txt").write_text(scene.caption)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_is_tuned_to_ones_own_footage(tmp_path: Path) -> None:
    film(tmp_path / "footage" / "old", range(3))
    film(tmp_path / "footage" / "new", range(3, 5))
    film(tmp_path / "footage_val" / "old", range(5, 7))
    film(tmp_path / "footage_val" / "new", range(7, 9))
    (mine,) = section("your_videos.md", "Train", "yaml")
    (tuned,) = section("finetune.md", "Your own footage", "yaml")
    (tmp_path / "mine.yaml").write_text(mine)
    (tmp_path / "tuned.yaml").write_text(tuned)
    for block in section("finetune.md", "Your own footage", "bash"):
        done = subprocess.run(["bash", "-c", LUMOS + block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    for part in "old", "new":
        assert (tmp_path / "eval" / f"before_{part}" / "eval.json").is_file()
        assert (tmp_path / "eval" / f"tuned_{part}" / "eval.json").is_file()
    assert list((tmp_path / "clips" / "tuned").glob("*.mp4")) and list((tmp_path / "clips" / "before").glob("*.mp4"))
    assert (tmp_path / "old.txt").read_text().count("\n") == 3
